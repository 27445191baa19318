/* dpt_runtime.h - predict depth, surface normals and foreground alpha from images, with a bundle made by dpt-deploy.
 *
 *     #include <dpt_runtime.h>
 *
 *     dpt_runtime *runtime = NULL;
 *     if (dpt_load("engines/best_model", NULL, &runtime) != DPT_OK) {
 *         fprintf(stderr, "%s\n", dpt_last_error());
 *         return 1;
 *     }
 *     float *depth = malloc(sizeof(float) * 1280 * 720);               // the caller allocates all buffers
 *     dpt_frames frames = {.data = pixels, .batch = 1, .height = 720, .width = 1280, .format = DPT_BGR};
 *     dpt_maps maps = {.depth = depth};                                // NULL: do not return this map
 *     if (dpt_infer(runtime, &frames, &maps) != DPT_OK) fprintf(stderr, "%s\n", dpt_last_error());
 *     dpt_unload(runtime);
 *
 * A bundle is the folder that `python -m dpt_deploy.export best_model.pth` writes: graphs, engines, and a manifest with
 * the SHA-256 of every file. Resizing and normalisation are part of the graph, so no pre- or post-processing is needed:
 * frames of any size go in, maps of the same size come out.
 *
 * LIFE CYCLE. dpt_load() opens a bundle and returns a handle. dpt_infer() and dpt_infer_device() use it any number of
 * times. dpt_unload() releases it. Several handles may exist at once, also of the same bundle.
 *
 * THREAD SAFETY. All functions are thread-safe, with one exception: dpt_unload(runtime) must not run concurrently with
 * another call on the same handle, and the handle must not be used afterwards. Concurrent dpt_infer() calls on one
 * handle run in parallel on ONNX Runtime and one at a time on an engine. dpt_last_error() is per thread.
 *
 * OWNERSHIP. The caller owns all input and output buffers. The library accesses them only during the call, or, with
 * dpt_infer_device(), until the work on the stream has finished. The library owns the strings that it returns; do not
 * free them.
 *
 * ERRORS. Functions that can fail return a dpt_status, and dpt_last_error() returns a message that says what was
 * expected, what was received and what to do.
 *
 * MAPS. Little-endian float32 in C order, without padding, one value per pixel of the frame (normals: three):
 *
 *     depth    [batch][height][width]       z-depth [m], > 0; of an imported model perhaps relative: see below
 *     normals  [batch][height][width][3]    unit vectors in camera space: x right, y up, z towards the viewer; each
 *                                           component is in [-1, 1]
 *     alpha    [batch][height][width]       foreground coverage in [0, 1]
 *
 * A bundle may contain only some of these maps; see dpt_heads(). The field "depth" of dpt_contract_json() says what
 * depth is: "z-depth in metres", or "relative depth without unit, larger is farther", of any sign, where only differences
 * within one map mean something.
 *
 * COMPATIBILITY. The header compiles as C11 and as C++, and includes only standard C headers. Releases with the same
 * DPT_ABI_VERSION (the number in the soname) may add functions and constants, but do not change existing functions,
 * structs or constants. Zero is the default of every field; reserved fields must be zero.
 */
#ifndef DPT_RUNTIME_H
#define DPT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define DPT_ABI_VERSION 1
#define DPT_VERSION "0.1.0"

#if defined(DPT_BUILDING_RUNTIME)
#define DPT_API __attribute__((visibility("default")))
#else
#define DPT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ status codes --- */

/* The result of a call. The message of an error is in dpt_last_error(). */
typedef enum dpt_status {
    DPT_OK = 0,
    DPT_BAD_INPUT = 1,       /* an invalid argument or option */
    DPT_BAD_BUNDLE = 2,      /* a bundle that is missing, incomplete, modified, or of another format */
    DPT_CONTRACT_ERROR = 3,  /* a map or size that the bundle does not support, or a graph that does not match
                                the bundle's contract */
    DPT_MISSING_LIBRARY = 4, /* a library that the requested backend needs was not found */
    DPT_BACKEND_ERROR = 5,   /* no backend, or not the requested one, can run here (GPU, driver, version), or
                                inference failed */
    DPT_OUT_OF_MEMORY = 6,   /* out of host memory */
    DPT_INTERNAL_ERROR = 7   /* a bug in this library; please report the message */
} dpt_status;

/* ---------------------------------------------------------------------------------------------------- loading --- */

/* What runs the network. DPT_BACKEND_AUTO tries the others in this order and uses the first that can run here. */
typedef enum dpt_backend {
    DPT_BACKEND_AUTO = 0,
    DPT_BACKEND_TENSORRT = 1,         /* a TensorRT engine, on the GPU and TensorRT version it was built for */
    DPT_BACKEND_TENSORRT_RTX = 2,     /* a TensorRT-RTX engine, on RTX GPUs from Ampere on */
    DPT_BACKEND_ONNXRUNTIME_CUDA = 3, /* the ONNX graph, with ONNX Runtime's CUDA provider */
    DPT_BACKEND_ONNXRUNTIME_CPU = 4   /* the ONNX graph, with ONNX Runtime on the CPU */
} dpt_backend;

/* The precision of the graph or engine. DPT_PRECISION_AUTO prefers FP16, then BF16, then FP32 on a GPU. On the CPU it
 * prefers FP32, because ONNX Runtime computes in FP32 there. It never takes INT8 or FP8. With any other value, no other
 * precision is used.
 *
 * INT8 runs as an engine or with ONNX Runtime on the CPU, where it is faster if the processor has 8-bit dot products
 * (VNNI or AMX on x86); `python -m dpt_deploy.doctor` says whether it has. Without them, the maps may differ slightly
 * from those of a processor with them. FP8 is for engines; ONNX Runtime on the CPU rounds to FP8 and computes in FP32.
 * ONNX Runtime's CUDA provider has no 8-bit kernels for these graphs and is not used with INT8 and FP8. */
typedef enum dpt_precision {
    DPT_PRECISION_AUTO = 0,
    DPT_PRECISION_FP16 = 1,
    DPT_PRECISION_BF16 = 2,
    DPT_PRECISION_FP32 = 3,
    DPT_PRECISION_INT8 = 4,
    DPT_PRECISION_FP8 = 5
} dpt_precision;

/* Options of dpt_load(). Start from dpt_options_default() and change single fields. */
typedef struct dpt_options {
    uint32_t size;            /* sizeof(dpt_options); dpt_options_default() sets it and dpt_load() checks it */
    int32_t backend;          /* a dpt_backend */
    int32_t precision;        /* a dpt_precision */
    int32_t threads;          /* CPU threads per operator, 0 to 4096; 0: ONNX Runtime's default, all cores */
    int32_t device;           /* CUDA index of the GPU, 0 to 1023 */
    int32_t no_cuda_graph;    /* non-zero: do not use CUDA graphs; engines launch their kernels one by one */
    const char *onnxruntime_library; /* path of libonnxruntime.so. NULL: the environment variable
                                        DPT_ONNXRUNTIME_LIBRARY. If that is not set either, libonnxruntime.so.1 on the
                                        dynamic linker's search path, then in the folder of this library. A path that
                                        is set is the only one that is tried. */
    const char *backend_folder;      /* folder of libdpt_backend_*.so. NULL: the environment variable
                                        DPT_BACKEND_FOLDER, or else the folder of this library */
    uint64_t reserved[8];     /* must be zero */
} dpt_options;

typedef struct dpt_runtime dpt_runtime; /* a handle: one loaded bundle */

/* The default options: the best backend that can run here. */
DPT_API dpt_options dpt_options_default(void);

/* Load a bundle. Every file that is used is checked against its SHA-256 in the manifest.
 *
 *   bundle    path of the bundle's folder (UTF-8)
 *   options   NULL for the defaults
 *   runtime   receives a handle for dpt_unload(), or NULL on failure
 *
 * DPT_BAD_INPUT: an argument is NULL, unknown or out of range. DPT_BAD_BUNDLE: the folder is not a bundle, or a file
 * was modified. DPT_CONTRACT_ERROR: a graph or engine does not match the manifest. DPT_MISSING_LIBRARY,
 * DPT_BACKEND_ERROR: no backend, or not the requested one, can run here; the message says why and what to do. */
DPT_API dpt_status dpt_load(const char *bundle, const dpt_options *options, dpt_runtime **runtime);

/* Release a handle and its resources, after waiting for GPU work that uses them. NULL is allowed. */
DPT_API void dpt_unload(dpt_runtime *runtime);

/* --------------------------------------------------------------------------------------------------- inference --- */

/* The channels of a pixel in memory order, 8 bits each. Alpha is ignored. Gray is expanded to three equal channels. */
typedef enum dpt_pixel_format { DPT_RGB = 0, DPT_BGR = 1, DPT_RGBA = 2, DPT_BGRA = 3, DPT_GRAY = 4 } dpt_pixel_format;

/* A batch of frames of one size. Pixel (x, y) of frame n is at
 * data + n * frame_stride + y * row_stride + x * (bytes per pixel). On the CPU, RGB without padding is not copied. */
typedef struct dpt_frames {
    const uint8_t *data;  /* the top-left pixel of the first frame */
    int32_t batch;        /* number of frames, at least 1 */
    int32_t height;       /* [pixels], at least 1; an engine supports a range, which its error states */
    int32_t width;        /* [pixels], at least 1 */
    int32_t format;       /* a dpt_pixel_format */
    int64_t row_stride;   /* distance between rows [bytes]; 0: no padding; negative: bottom-up image */
    int64_t frame_stride; /* distance between frames [bytes]; 0: height * row_stride */
} dpt_frames;

/* Output buffers, allocated by the caller. NULL: this map is not returned. At least one is not NULL. */
typedef struct dpt_maps {
    float *depth;   /* batch * height * width floats [m], or without unit: see MAPS */
    float *normals; /* batch * height * width * 3 floats */
    float *alpha;   /* batch * height * width floats in [0, 1] */
} dpt_maps;

/* Predict the maps of frames in host memory. The maps are complete when the call returns. After an error, the content
 * of the buffers is undefined.
 *
 * DPT_BAD_INPUT: an argument is NULL or out of range, or no map is requested. DPT_CONTRACT_ERROR: the bundle lacks a
 * requested map, or the frame size or batch is outside the range of the engine. DPT_BACKEND_ERROR: inference failed. */
DPT_API dpt_status dpt_infer(dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps);

/* Predict the maps of frames in GPU memory, without copies. frames->data and the maps are device pointers on the GPU of
 * dpt_options.device; the format is DPT_RGB without padding.
 *
 *   stream    a cudaStream_t on which the pixels are ready; NULL: the legacy default stream
 *
 * With an engine, the call returns once the work is enqueued, and the maps are ready in stream order: synchronise the
 * stream, or enqueue on it, before reading them, and keep all buffers unchanged until then. With ONNX Runtime the maps
 * are complete when the call returns.
 *
 * Errors: those of dpt_infer(), and DPT_CONTRACT_ERROR if the backend does not run on a GPU. */
DPT_API dpt_status dpt_infer_device(dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps, void *stream);

/* The largest batch of height x width frames [pixels] that one call accepts. 0: only memory limits the batch, or an
 * argument is invalid (dpt_last_error() is then not empty). */
DPT_API int32_t dpt_largest_batch(const dpt_runtime *runtime, int32_t height, int32_t width);

/* ------------------------------------------------------------------------------------------------- information --- */

/* The maps that the bundle predicts, as a combination of these bits; 0 for a NULL handle. */
#define DPT_HAS_DEPTH 1u
#define DPT_HAS_NORMALS 2u
#define DPT_HAS_ALPHA 4u
DPT_API uint32_t dpt_heads(const dpt_runtime *runtime);

/* The contract of the bundle as JSON (UTF-8): heads, input size, normalisation, and the tensors with shapes, units and
 * ranges. Valid as long as the handle; NULL for a NULL handle. */
DPT_API const char *dpt_contract_json(const dpt_runtime *runtime);

/* The backend in use: "tensorrt", "tensorrt-rtx", "onnxruntime-cuda" or "onnxruntime-cpu". Valid until the process
 * ends; NULL for a NULL handle. */
DPT_API const char *dpt_backend_name(const dpt_runtime *runtime);

/* A sentence for the log: which backend and file are in use, why each preferred backend is not and, for an engine,
 * whether CUDA graphs are in use, which can change from call to call. Valid as long as the handle; NULL for a NULL
 * handle. */
DPT_API const char *dpt_reason(const dpt_runtime *runtime);

/* The error message of this thread's last call; "" if that call succeeded. Valid until this thread's next call into
 * this library. */
DPT_API const char *dpt_last_error(void);

/* The version of the library, such as "0.1.0". DPT_VERSION is the version of this header. */
DPT_API const char *dpt_version(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* DPT_RUNTIME_H */
