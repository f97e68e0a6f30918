// Stand-ins for the parts of cublasLt, cuRAND and NVIDIA's driver that the service and ONNX Runtime call.
#include <cstdlib>
#include <cstring>

#define API extern "C"

#ifdef CUBLASLT
API int cublasLtCreate(void** handle) { static int one; *handle = &one; return 0; }
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtGetProperty(int part, int* value) { *value = part ? 0 : 13; return 0; }
#endif

#ifdef CURAND
API int curandGetProperty(int part, int* value) { *value = part ? 0 : 10; return 0; }
#endif

#ifdef DRIVER
static int capability() { const char* value = getenv("HARNESS_CAPABILITY"); return value ? atoi(value) : 90; }
API int cuInit(unsigned) { return 0; }
API int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
API int cuGetErrorString(int, const char** text) { *text = "an error of the stand-in"; return 0; }
API int cuDeviceGetCount(int* count) { *count = 1; return 0; }
API int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
API int cuDeviceGetName(char* name, int length, int) { strncpy(name, "Stand-in", length); return 0; }
API int cuDeviceGetAttribute(int* value, int attribute, int) { *value = attribute == 75 ? capability() / 10 : capability() % 10; return 0; }
API int cuDevicePrimaryCtxRetain(void** context, int) { static int one; *context = &one; return 0; }
API int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API int cuCtxPushCurrent_v2(void*) { return 0; }
API int cuCtxPopCurrent_v2(void**) { return 0; }
API int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = *total = (size_t)64 << 30; return 0; }
#endif
