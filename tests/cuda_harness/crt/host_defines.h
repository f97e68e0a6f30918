// The macros of CUDA's compiler in the headers of the wheel nvidia-cuda-runtime, which does not have this file.
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __host__
#define __device__
#define __inline__ inline
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
