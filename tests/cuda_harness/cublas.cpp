// A stand-in for cuBLAS that computes float32 products on the CPU. See cudart.cpp.
#include <functional>
#include <string>
#include <vector>

#define API extern "C"

struct Stream;
struct Handle { Stream* stream; int mode; };
API void harness_log(const char* format, ...);
API int harness_add(Stream* stream, const char* name, std::vector<const void*> pointers, std::function<void()> compute);

API int cublasCreate_v2(Handle** handle) { harness_log("create cuBLAS"); *handle = new Handle{}; return 0; }
API int cublasDestroy_v2(Handle* handle) { harness_log("destroy cuBLAS"); delete handle; return 0; }
API int cublasSetStream_v2(Handle* handle, Stream* stream) { handle->stream = stream; return 0; }
API int cublasSetMathMode(Handle* handle, int mode) { handle->mode = mode; return 0; }
API int cublasGetMathMode(Handle* handle, int* mode) { *mode = handle->mode; return 0; }
API int cublasGetProperty(int part, int* value) { *value = part ? 0 : 13; return 0; }
API const char* cublasGetStatusString(int) { return "an error of the stand-in"; }
API const char* cublasGetStatusName(int) { return "CUBLAS_STATUS_STAND_IN"; }

// C = alpha op(A) op(B) + beta C, with columns one after another. The call reads alpha and beta; the work reads the
// matrices.
static int multiply(Handle* handle, int transposed_a, int transposed_b, int m, int n, int k, float alpha, const float* a,
                    int lda, const float* b, int ldb, float beta, float* c, int ldc) {
    return harness_add(handle->stream, "gemm", {a, b, c}, [=] {
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                double sum = 0;
                for (int l = 0; l < k; l++)
                    sum += (double)(transposed_a ? a[(long)i * lda + l] : a[(long)l * lda + i]) *
                           (transposed_b ? b[(long)l * ldb + j] : b[(long)j * ldb + l]);
                float& to = c[(long)j * ldc + i];
                to = (float)(alpha * sum + (beta == 0 ? 0 : beta * to));
            }
    });
}
API int cublasSgemm_v2(Handle* handle, int ta, int tb, int m, int n, int k, const float* alpha, const float* a, int lda,
                       const float* b, int ldb, const float* beta, float* c, int ldc) {
    return multiply(handle, ta, tb, m, n, k, *alpha, a, lda, b, ldb, *beta, c, ldc);
}
API int cublasGemmEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type_a,
                     int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int, int) {
    if (type_a || type_b || type_c)  // 0 is CUDA_R_32F
        return harness_add(handle->stream, "uncomputed gemm", {a, b, c}, nullptr);
    return multiply(handle, ta, tb, m, n, k, *(const float*)alpha, (const float*)a, lda, (const float*)b, ldb,
                    *(const float*)beta, (float*)c, ldc);
}
API int cublasScopy_v2(Handle* handle, int n, const float* x, int step_x, float* y, int step_y) {
    return harness_add(handle->stream, "scopy", {x, y}, [=] { for (int i = 0; i < n; i++) y[(long)i * step_y] = x[(long)i * step_x]; });
}
