// A stand-in for CUDA's runtime, for tests without a GPU. Host memory is the device memory. A stream does its work as late
// as CUDA allows: when something waits for it. So a missing wait or a missing event changes the outputs. The stand-in
// enforces the rules of captures, detects the use of freed memory, and logs every call.
//
// The stand-in computes the few float32 kernels that a folded network runs. All other kernels are logged, but not
// computed.
// The rules are those of the CUDA Runtime API 13, "Graph Management" and "Stream Management":
// https://docs.nvidia.com/cuda/cuda-runtime-api/
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define __CUDA_INTERNAL_COMPILATION__
#include <driver_types.h>
#include <vector_types.h>

#define API extern "C"

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, UNSUPPORTED = 801, IN_CAPTURE = 900, INVALIDATED = 901, IMPLICIT = 906, WRONG_THREAD = 908 };
enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2, NON_BLOCKING = 1 };

struct Work { std::string name; std::vector<const void*> pointers; std::function<void()> compute; };
// added: the number of works that were added to the stream. done: the number of these works that are done.
struct Stream { int number; bool blocking; bool capturing; bool invalid; int mode; long thread; std::vector<Work> work; std::deque<Work> queue; size_t added, done; };
struct Event { Stream* stream; size_t position; };
struct Graph { std::vector<Work> work; };
struct Block { size_t size; const char* kind; int number; bool freed; };
struct Fault { int skip; int code; };

static std::recursive_mutex mutex;
static std::map<char*, Block> blocks;               // by their first address; freed blocks stay here
static std::set<Stream*> streams;
static std::set<Graph*> graphs;                     // graphs and executable graphs
static std::map<const void*, std::string> kernels;  // names, by the address of the host function
static std::map<std::string, Fault> faults;         // by the name of the function that fails
static std::string log_text, violations;
static size_t used, limit = (size_t)64 << 30;
static int lost, next_block, next_stream;           // lost: the error of a failed device, which every call returns
static thread_local int last;

static long thread_number() { return syscall(SYS_gettid); }

API void harness_log(const char* format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    std::lock_guard<std::recursive_mutex> lock(mutex);
    log_text += line; log_text += '\n';
}

static void violate(const std::string& what) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    violations += what + "\n";
    harness_log("VIOLATION %s", what.c_str());
    if (const char* path = getenv("HARNESS_VIOLATIONS"))
        if (FILE* file = fopen(path, "a")) { fprintf(file, "%s\n", what.c_str()); fclose(file); }
}

// The controls of the tests, called through ctypes.
API const char* harness_read_log() { static std::string copy; std::lock_guard<std::recursive_mutex> lock(mutex); copy = log_text; return copy.c_str(); }
API const char* harness_violations() { static std::string copy; std::lock_guard<std::recursive_mutex> lock(mutex); copy = violations; return copy.c_str(); }
API void harness_clear_log() { std::lock_guard<std::recursive_mutex> lock(mutex); log_text.clear(); }
API void harness_fail(const char* function, int skip, int code) { std::lock_guard<std::recursive_mutex> lock(mutex); faults[function] = {skip, code}; }
API void harness_lose(int code) { lost = code; }
API void harness_limit(size_t bytes) { limit = bytes; }
API size_t harness_used() { return used; }

static int result(int code) { if (code) last = code; return code; }

// Return the error that this call must report before it does anything: a failed device, or a fault of the test.
static int begin(const char* name) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (const char* path = getenv("HARNESS_LOSE"))  // a file whose existence makes the device fail
        if (!lost && access(path, F_OK) == 0) lost = 700;
    if (lost) { harness_log("%s: lost", name); return result(lost); }
    auto fault = faults.find(name);
    if (fault == faults.end() || fault->second.skip-- > 0) return OK;
    int code = fault->second.code;
    faults.erase(fault);
    harness_log("%s: fault %d", name, code);
    if (code == 700) lost = code;  // CUDA's reference: "any further CUDA work will return the same error"
    return result(code);
}

// Calls that may break a capture: a capture in global mode forbids them on every thread.
static int refuse_in_capture(const char* name) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    for (Stream* stream : streams)
        if (stream->capturing && (stream->mode == GLOBAL || (stream->mode == THREAD_LOCAL && stream->thread == thread_number()))) {
            stream->invalid = true;
            violate(std::string(name) + " during a capture");
            return result(IN_CAPTURE);
        }
    return OK;
}

#define BEGIN(name) if (int code = begin(name)) return code
#define BEGIN_OUTSIDE_CAPTURE(name) BEGIN(name); if (int code = refuse_in_capture(name)) return code
#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)

static Block* find_block(const void* address) {
    auto after = blocks.upper_bound((char*)address);
    if (after == blocks.begin()) return nullptr;
    auto found = std::prev(after);
    return (char*)address < found->first + found->second.size ? &found->second : nullptr;
}

static std::string place(const void* address) {
    Block* block = find_block(address);
    return block ? std::string(block->kind) + std::to_string(block->number) : "host";
}

static void do_work(const Work& work) {
    for (const void* pointer : work.pointers) {
        Block* block = find_block(pointer);
        if (block && block->freed) violate(work.name + " uses freed " + place(pointer));
    }
    if (work.compute) work.compute();
}

// Do the works of a stream, up to the given number of works.
static void finish(Stream* stream, size_t position) {
    while (streams.count(stream) && stream->done < position && !stream->queue.empty()) {
        Work work = stream->queue.front();
        stream->queue.pop_front();
        stream->done++;
        do_work(work);
    }
}
static void finish(Stream* stream) { finish(stream, SIZE_MAX); }
static void finish_all(bool blocking_only = false) { for (Stream* stream : std::set<Stream*>(streams)) if (stream->blocking || !blocking_only) finish(stream); }
static void queue(Stream* stream, const Work& work) {
    if (!stream) { finish_all(true); do_work(work); return; }  // the legacy stream waits for the blocking streams
    stream->queue.push_back(work);
    stream->added++;
}

API int harness_add(Stream* stream, const char* name, std::vector<const void*> pointers, std::function<void()> compute) {
    LOCK;
    if (stream && !streams.count(stream)) { violate(std::string(name) + " on a destroyed stream"); return result(INVALID); }
    Work work{name, pointers, compute};
    std::string places;
    for (const void* pointer : pointers) places += " " + place(pointer);
    bool capturing = stream && stream->capturing;
    if (!stream)  // work on the legacy stream waits for blocking streams, which a capture forbids
        for (Stream* other : streams)
            if (other->capturing && other->blocking) { other->invalid = true; violate(work.name + " on the legacy stream during a capture"); return result(IMPLICIT); }
    harness_log("%s%s%s stream %d", capturing ? "captured " : "", name, places.c_str(), stream ? stream->number : 0);
    if (capturing) stream->work.push_back(work); else queue(stream, work);
    return OK;
}

static int allocate(void** memory, size_t size, const char* kind) {
    LOCK;
    bool device = !strcmp(kind, "device");
    *memory = nullptr;
    if (device && used + size > limit) { harness_log("%s: no memory for %zu bytes", kind, size); return result(NO_MEMORY); }
    char* block = (char*)aligned_alloc(512, (size + 511) / 512 * 512 + (size ? 0 : 512));
    memset(block, 0x7f, size);  // NaN, so that memory that was never written shows in the outputs
    blocks[block] = {size, kind, ++next_block, false};
    if (device) used += size;
    *memory = block;
    harness_log("allocate %s%d %zu", kind, next_block, size);
    return OK;
}

static int release(void* memory) {  // the block is never given back, so that its later use is detected
    LOCK;
    if (!memory) return OK;
    finish_all();  // a free waits for the device
    auto found = blocks.find((char*)memory);
    if (found == blocks.end() || found->second.freed) { violate("a free of " + place(memory) + " that is not allocated"); return result(INVALID); }
    found->second.freed = true;
    if (!strcmp(found->second.kind, "device")) used -= found->second.size;
    memset(memory, 0x7f, found->second.size);
    harness_log("free %s", place(memory).c_str());
    return OK;
}

API int cudaMalloc(void** memory, size_t size) { BEGIN_OUTSIDE_CAPTURE("cudaMalloc"); return allocate(memory, size, "device"); }
API int cudaFree(void* memory) { BEGIN_OUTSIDE_CAPTURE("cudaFree"); return release(memory); }
API int cudaMallocHost(void** memory, size_t size) { BEGIN_OUTSIDE_CAPTURE("cudaMallocHost"); return allocate(memory, size, "pinned"); }
API int cudaHostAlloc(void** memory, size_t size, unsigned) { BEGIN_OUTSIDE_CAPTURE("cudaHostAlloc"); return allocate(memory, size, "pinned"); }
API int cudaFreeHost(void* memory) { BEGIN_OUTSIDE_CAPTURE("cudaFreeHost"); return release(memory); }
API int cudaMemGetInfo(size_t* free, size_t* total) { BEGIN("cudaMemGetInfo"); *free = limit - used; *total = limit; return OK; }

API int cudaMemcpyAsync(void* target, const void* source, size_t size, int, Stream* stream) {
    BEGIN("cudaMemcpyAsync");
    int code = harness_add(stream, ("copy " + std::to_string(size)).c_str(), {source, target}, [=] { memcpy(target, source, size); });
    LOCK;  // a copy of memory that is not page-locked is done before the call returns
    if (!code && stream && !stream->capturing && (!find_block(source) || !find_block(target))) finish(stream);
    return code;
}
API int cudaMemcpy(void* target, const void* source, size_t size, int kind) { BEGIN_OUTSIDE_CAPTURE("cudaMemcpy"); return cudaMemcpyAsync(target, source, size, kind, nullptr); }
API int cudaMemsetAsync(void* target, int value, size_t size, Stream* stream) { BEGIN("cudaMemsetAsync"); return harness_add(stream, "memset", {target}, [=] { memset(target, value, size); }); }
API int cudaMemset(void* target, int value, size_t size) { BEGIN_OUTSIDE_CAPTURE("cudaMemset"); return cudaMemsetAsync(target, value, size, nullptr); }

API int cudaStreamCreateWithFlags(Stream** stream, unsigned flags) {
    BEGIN("cudaStreamCreateWithFlags"); LOCK;
    *stream = new Stream{++next_stream, flags != NON_BLOCKING};
    streams.insert(*stream);
    return OK;
}
API int cudaStreamCreate(Stream** stream) { return cudaStreamCreateWithFlags(stream, 0); }
API int cudaStreamDestroy(Stream* stream) { BEGIN("cudaStreamDestroy"); LOCK; harness_log("destroy stream %d", stream->number); finish(stream); return streams.erase(stream) ? OK : result(INVALID); }
API int cudaStreamSynchronize(Stream* stream) {
    BEGIN("cudaStreamSynchronize"); LOCK;
    harness_log("wait stream %d", stream ? stream->number : 0);
    if (stream && stream->capturing) { stream->invalid = true; violate("cudaStreamSynchronize of a stream that is captured"); return result(IN_CAPTURE); }
    if (stream) finish(stream); else finish_all(true);
    return OK;
}
API int cudaDeviceSynchronize() { BEGIN_OUTSIDE_CAPTURE("cudaDeviceSynchronize"); LOCK; finish_all(); return OK; }
API int cudaStreamBeginCapture(Stream* stream, int mode) {
    BEGIN("cudaStreamBeginCapture"); LOCK;
    if (!stream || stream->capturing) return result(IN_CAPTURE);
    harness_log("begin capture mode %d", mode);
    stream->capturing = true; stream->invalid = false; stream->mode = mode; stream->thread = thread_number(); stream->work.clear();
    return OK;
}
API int cudaStreamEndCapture(Stream* stream, Graph** graph) {
    BEGIN("cudaStreamEndCapture"); LOCK;
    *graph = nullptr;
    if (!stream->capturing) return result(INVALID);
    if (stream->mode != RELAXED && stream->thread != thread_number()) return result(WRONG_THREAD);
    stream->capturing = false;
    harness_log("end capture nodes %zu", stream->work.size());
    if (stream->invalid) return result(INVALIDATED);
    graphs.insert(*graph = new Graph{stream->work});
    return OK;
}
API int cudaStreamIsCapturing(Stream* stream, int* status) { BEGIN("cudaStreamIsCapturing"); *status = stream && stream->capturing; return OK; }
API int cudaStreamGetCaptureInfo(Stream* stream, int* status) { return cudaStreamIsCapturing(stream, status); }
API int cudaGraphGetNodes(Graph* graph, Work** nodes, size_t* count) {
    BEGIN("cudaGraphGetNodes");
    *count = graph->work.size();
    for (size_t i = 0; nodes && i < *count; i++) nodes[i] = &graph->work[i];
    return OK;
}
API int cudaGraphNodeGetType(Work* work, int* type) { BEGIN("cudaGraphNodeGetType"); *type = work->name == "host function" ? 3 : 0; return OK; }
API int cudaGraphInstantiate(Graph** executable, Graph* graph, unsigned long long) { BEGIN("cudaGraphInstantiate"); LOCK; graphs.insert(*executable = new Graph{graph->work}); return OK; }
static int destroy_graph(Graph* graph) { LOCK; if (!graphs.erase(graph)) { violate("a graph is destroyed twice"); return result(INVALID); } return OK; }
API int cudaGraphDestroy(Graph* graph) { BEGIN("cudaGraphDestroy"); return destroy_graph(graph); }
API int cudaGraphExecDestroy(Graph* graph) { BEGIN("cudaGraphExecDestroy"); harness_log("destroy graph"); return destroy_graph(graph); }
API int cudaGraphLaunch(Graph* graph, Stream* stream) {
    BEGIN("cudaGraphLaunch"); LOCK;
    if (!graphs.count(graph)) { violate("a launch of a destroyed graph"); return result(INVALID); }
    if (stream->capturing) { stream->invalid = true; return result(IN_CAPTURE); }
    harness_log("launch nodes %zu", graph->work.size());
    for (const Work& work : graph->work) queue(stream, work);
    return OK;
}

API int cudaEventCreateWithFlags(Event** event, unsigned) { BEGIN("cudaEventCreateWithFlags"); *event = new Event{}; return OK; }
API int cudaEventCreate(Event** event) { return cudaEventCreateWithFlags(event, 0); }
API int cudaEventDestroy(Event* event) { BEGIN("cudaEventDestroy"); delete event; return OK; }
API int cudaEventRecord(Event* event, Stream* stream) { BEGIN("cudaEventRecord"); LOCK; *event = {stream, stream ? stream->added : 0}; return OK; }
API int cudaEventSynchronize(Event* event) {
    BEGIN_OUTSIDE_CAPTURE("cudaEventSynchronize"); LOCK;
    harness_log("wait event of stream %d", event->stream ? event->stream->number : 0);
    finish(event->stream, event->position);
    return OK;
}
API int cudaStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    BEGIN("cudaStreamWaitEvent"); LOCK;
    if (event->stream && stream && !stream->capturing)
        queue(stream, {"wait event", {}, [on = event->stream, position = event->position] { finish(on, position); }});
    return OK;
}
API int cudaLaunchHostFunc(Stream* stream, void (*function)(void*), void* data) { BEGIN("cudaLaunchHostFunc"); return harness_add(stream, "host function", {}, [=] { function(data); }); }

static int capability() { const char* value = getenv("HARNESS_CAPABILITY"); return value ? atoi(value) : 90; }
API int cudaGetDevice(int* device) { *device = 0; return OK; }
API int cudaSetDevice(int device) { BEGIN("cudaSetDevice"); return device ? result(101) : OK; }
API int cudaGetDeviceCount(int* count) { *count = 1; return OK; }
API int cudaDriverGetVersion(int* version) { *version = 13000; return OK; }
API int cudaRuntimeGetVersion(int* version) { *version = 13000; return OK; }
API int cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    BEGIN("cudaGetDeviceProperties");
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "Stand-in");
    properties->major = capability() / 10; properties->minor = capability() % 10;
    properties->multiProcessorCount = 132; properties->totalGlobalMem = limit; properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024; properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024; properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = INT32_MAX; properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->sharedMemPerBlock = 49152; properties->sharedMemPerBlockOptin = properties->sharedMemPerMultiprocessor = 232448;
    properties->regsPerBlock = 65536; properties->l2CacheSize = 50 << 20;
    return OK;
}
API int cudaDeviceGetAttribute(int* value, int attribute, int) {
    BEGIN("cudaDeviceGetAttribute");
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        default: *value = 1;
    }
    return OK;
}
API int cudaGetLastError() { int code = lost ? lost : last; last = OK; return code; }
API int cudaPeekAtLastError() { return lost ? lost : last; }
API const char* cudaGetErrorString(int code) {
    switch (code) {
        case OK: return "no error";
        case NO_MEMORY: return "out of memory";
        case 700: return "an illegal memory access was encountered";
        case IN_CAPTURE: return "operation not permitted when stream is capturing";
        case INVALIDATED: return "operation failed due to a previous error during capture";
        default: return "unknown error";
    }
}
API const char* cudaGetErrorName(int code) { return code == NO_MEMORY ? "cudaErrorMemoryAllocation" : code == 700 ? "cudaErrorIllegalAddress" : "cudaErrorUnknown"; }
API int cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    BEGIN("cudaPointerGetAttributes"); LOCK;
    memset(attributes, 0, sizeof *attributes);
    Block* block = find_block(pointer);
    attributes->type = !block ? cudaMemoryTypeUnregistered : !strcmp(block->kind, "device") ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = attributes->hostPointer = (void*)pointer;
    return OK;
}
API int cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) { BEGIN("cudaFuncGetAttributes"); memset(attributes, 0, sizeof *attributes); attributes->maxThreadsPerBlock = 1024; return OK; }
API int cudaFuncSetAttribute(const void*, int, int) { BEGIN("cudaFuncSetAttribute"); return OK; }
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks_, const void*, int, size_t, unsigned) { *blocks_ = 2; return OK; }

// The compiler's registration of kernels, and their launches.
API void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const void* host, char*, const char* name, int, void*, void*, void*, void*, int*) { LOCK; kernels[host] = name; }
API int __cudaGetKernel(const void** kernel, const void* host) { *kernel = host; return OK; }
static thread_local struct { dim3 grid, block; size_t shared; Stream* stream; } configuration;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, Stream* stream) { configuration = {grid, block, shared, stream}; return 0; }
API int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, Stream** stream) {
    *grid = configuration.grid; *block = configuration.block; *shared = configuration.shared; *stream = configuration.stream;
    return OK;
}

template <class Type> static Type argument(void** arguments, int place_) { Type value; memcpy(&value, arguments[place_], sizeof value); return value; }

// The kernels of ONNX Runtime 1.31 for a folded float32 network, with the order of their arguments.
static Work kernel_work(const std::string& name, void** a) {
    auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    if (has("BroadcastBiasKernelIf")) {
        auto bias = argument<const float*>(a, 0); auto output = argument<float*>(a, 1);
        auto count = argument<int64_t>(a, 2); int columns = argument<int>(a, 3), row = argument<int>(a, 4), column = argument<int>(a, 5);
        return {"bias", {bias, output}, [=] { for (int64_t i = 0; i < count; i++) output[i] = bias[i / columns * row + i % columns * column]; }};
    }
    if (has("OP_ReluIf")) {
        auto input = argument<const float*>(a, 0); auto output = argument<float*>(a, 1); int count = argument<int>(a, 3);
        return {"relu", {input, output}, [=] { for (int i = 0; i < count; i++) output[i] = input[i] > 0 || input[i] != input[i] ? input[i] : 0; }};
    }
    if (has("softmax_warp_forward") && has("Iff")) {
        auto output = argument<float*>(a, 0); auto input = argument<const float*>(a, 1);
        int rows = argument<int>(a, 2), stride = argument<int>(a, 3), columns = argument<int>(a, 4);
        return {"softmax", {input, output}, [=] {
            for (int r = 0; r < rows; r++) {
                const float* in = input + r * stride; float* out = output + r * stride; float top = -INFINITY, sum = 0;
                for (int c = 0; c < columns; c++) top = fmaxf(top, in[c]);
                for (int c = 0; c < columns; c++) sum += out[c] = expf(in[c] - top);
                for (int c = 0; c < columns; c++) out[c] /= sum;
            }
        }};
    }
    return {"uncomputed kernel " + name.substr(0, 120), {}, nullptr};
}

static int launch(const void* host, void** arguments, Stream* stream) {
    std::string name;
    { LOCK; auto found = kernels.find(host); if (found != kernels.end()) name = found->second; }
    Work work = kernel_work(name, arguments);
    return harness_add(stream, work.name.c_str(), work.pointers, work.compute);
}
API int cudaLaunchKernel(const void* host, dim3, dim3, void** arguments, size_t, Stream* stream) { BEGIN("cudaLaunchKernel"); return launch(host, arguments, stream); }
API int __cudaLaunchKernel(const void* host, dim3, dim3, void** arguments, size_t, Stream* stream) { BEGIN("cudaLaunchKernel"); return launch(host, arguments, stream); }
API int cudaLaunchKernelExC(const cudaLaunchConfig_t* chosen, const void* host, void** arguments) { BEGIN("cudaLaunchKernelExC"); return launch(host, arguments, (Stream*)chosen->stream); }
