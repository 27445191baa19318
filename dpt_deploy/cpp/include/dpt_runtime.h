/* dpt_runtime.h - depth, surface normals and alpha from pixels, out of a bundle made by dpt-deploy.
 *
 *     #include <dpt_runtime.h>
 *
 *     dpt_runtime *runtime = NULL;
 *     if (dpt_load("engines/best_model", NULL, &runtime) != DPT_OK) {
 *         fprintf(stderr, "%s\n", dpt_last_error());
 *         return 1;
 *     }
 *     float *depth = malloc(sizeof(float) * 1280 * 720);               // you own every buffer
 *     dpt_frames frames = {.data = pixels, .batch = 1, .height = 720, .width = 1280, .format = DPT_BGR};
 *     dpt_maps maps = {.depth = depth};                                // NULL: this map is not computed for you
 *     if (dpt_infer(runtime, &frames, &maps) != DPT_OK) fprintf(stderr, "%s\n", dpt_last_error());
 *     dpt_unload(runtime);
 *
 * A bundle is the folder that `python -m dpt_deploy.export best_model.pth` writes: graphs, engines, and a manifest
 * that ties them together with hashes. Resizing, normalisation and the way back to the frame's size are nodes of the
 * graph, so there is no pre- or post-processing to write: pixels in, maps of the same size out.
 *
 * THREADS. Every function may be called from any thread at any time, with one exception: dpt_unload(runtime) ends the
 * life of that handle, so no other call on it may be under way or follow. Calls of dpt_infer on one handle run side by
 * side on ONNX Runtime, and take turns on an engine. dpt_last_error() is kept per thread.
 *
 * OWNERSHIP. Input and output buffers are yours; the library reads and writes them during the call only
 * (dpt_infer_device: until the work on the stream is done). Strings that the library returns are its own: never free
 * them. The handle is freed by dpt_unload alone.
 *
 * MAPS. Little-endian float32, C order, tightly packed, one value (normals: three) per pixel of the frame:
 *
 *     depth    [batch][height][width]       z-depth in metres, > 0
 *     normals  [batch][height][width][3]    unit vectors in camera space: x to the image's right, y up, z towards the
 *                                           viewer; each component in [-1, 1]
 *     alpha    [batch][height][width]       foreground coverage in [0, 1]
 *
 * A bundle may hold a subset of these heads; dpt_heads() says which.
 *
 * ABI. C11 and C++ may include this header; it includes nothing but the C standard's. Within one DPT_ABI_VERSION (the
 * number in the soname) functions are only added, and no struct, constant or meaning changes. Zero is the default of
 * every field and the reserved fields stay zero.
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

/* What every call returns that can fail. The message of the failure is in dpt_last_error(). */
typedef enum dpt_status {
    DPT_OK = 0,
    DPT_BAD_INPUT = 1,       /* an argument or option that cannot be used as given */
    DPT_BAD_BUNDLE = 2,      /* a bundle that is incomplete, changed, truncated, or of another format */
    DPT_CONTRACT_ERROR = 3,  /* a tensor or size outside the contract, or a graph that carries another contract */
    DPT_MISSING_LIBRARY = 4, /* a library that the asked-for backend needs is not there */
    DPT_BACKEND_ERROR = 5,   /* no backend, or not the one asked for, can run here: no or another GPU, other version */
    DPT_OUT_OF_MEMORY = 6,   /* host memory ran out */
    DPT_INTERNAL_ERROR = 7   /* a defect of this library; please report its message */
} dpt_status;

/* ---------------------------------------------------------------------------------------------------- loading --- */

/* What runs the graph. DPT_BACKEND_AUTO tries them in this order and takes the first that can run here. */
typedef enum dpt_backend {
    DPT_BACKEND_AUTO = 0,
    DPT_BACKEND_TENSORRT = 1,         /* an engine of the bundle, on the GPU family and version it was built for */
    DPT_BACKEND_TENSORRT_RTX = 2,     /* an engine of the bundle, on Ampere and newer RTX */
    DPT_BACKEND_ONNXRUNTIME_CUDA = 3, /* the ONNX graph on ONNX Runtime's CUDA provider */
    DPT_BACKEND_ONNXRUNTIME_CPU = 4   /* the ONNX graph on the CPU */
} dpt_backend;

/* The precision of the artefact. AUTO: FP16 before BF16 and FP32 on a GPU; FP32 first on the CPU, which computes in
 * FP32 anyway. Any other value is strict. */
typedef enum dpt_precision {
    DPT_PRECISION_AUTO = 0,
    DPT_PRECISION_FP16 = 1,
    DPT_PRECISION_BF16 = 2,
    DPT_PRECISION_FP32 = 3
} dpt_precision;

/* Start from dpt_options_default() and change what you need. */
typedef struct dpt_options {
    uint32_t size;            /* sizeof(dpt_options), set by dpt_options_default(); checked by dpt_load() */
    int32_t backend;          /* a dpt_backend */
    int32_t precision;        /* a dpt_precision */
    int32_t threads;          /* CPU threads that one operator may use; 0: ONNX Runtime's own choice, all cores */
    int32_t device;           /* which GPU, as CUDA numbers them; 0: the first */
    int32_t no_cuda_graph;    /* not 0: engines launch their kernels one by one instead of replaying a CUDA graph */
    const char *onnxruntime_library; /* path of libonnxruntime.so; NULL: $DPT_ONNXRUNTIME_LIBRARY, or else
                                        libonnxruntime.so.1 where the dynamic linker finds it. One that is named is
                                        used alone: where it cannot be loaded, nothing else is tried. */
    const char *backend_folder;      /* folder of libdpt_backend_*.so; NULL: $DPT_BACKEND_FOLDER, or else the folder
                                        of this library */
    uint64_t reserved[8];     /* zero */
} dpt_options;

typedef struct dpt_runtime dpt_runtime; /* a loaded bundle */

/* All defaults: the best backend that runs here. */
DPT_API dpt_options dpt_options_default(void);

/* Load the bundle in the folder `bundle` (UTF-8). `options` may be NULL. On success *runtime is a handle for
 * dpt_unload(), on failure NULL. Every file that is used is checked against its SHA-256 in the manifest.
 *
 * DPT_BAD_INPUT: a NULL, unknown or out-of-range argument. DPT_BAD_BUNDLE: no bundle, or one whose files were changed.
 * DPT_CONTRACT_ERROR: a graph whose contract or tensors are not the manifest's. DPT_MISSING_LIBRARY,
 * DPT_BACKEND_ERROR: what was asked for cannot run here; the message says what would help. */
DPT_API dpt_status dpt_load(const char *bundle, const dpt_options *options, dpt_runtime **runtime);

/* Release the handle and all it holds; NULL is allowed. Waits for GPU work that still uses it. */
DPT_API void dpt_unload(dpt_runtime *runtime);

/* --------------------------------------------------------------------------------------------------- inference --- */

/* The order of the bytes of a pixel, 8 bits each. Alpha bytes are ignored; gray is used as three equal channels. */
typedef enum dpt_pixel_format { DPT_RGB = 0, DPT_BGR = 1, DPT_RGBA = 2, DPT_BGRA = 3, DPT_GRAY = 4 } dpt_pixel_format;

/* One or several frames of one size. Pixel (x, y) of frame n begins at
 * data + n * frame_stride + y * row_stride + x * (bytes per pixel). RGB without padding is used without a copy. */
typedef struct dpt_frames {
    const uint8_t *data;  /* the top left pixel of the first frame */
    int32_t batch;        /* number of frames, from 1 */
    int32_t height;       /* [pixels], from 1; engines have a range, which the error names */
    int32_t width;        /* [pixels], from 1 */
    int32_t format;       /* a dpt_pixel_format */
    int64_t row_stride;   /* from one row to the next [bytes]; 0: tightly packed; negative for bottom-up images */
    int64_t frame_stride; /* from one frame to the next [bytes]; 0: height * row_stride */
} dpt_frames;

/* Where the maps go: your buffers, each NULL or of the size given at the head of this file. NULL: not wanted. */
typedef struct dpt_maps {
    float *depth;   /* batch * height * width floats [m] */
    float *normals; /* batch * height * width * 3 floats */
    float *alpha;   /* batch * height * width floats in [0, 1] */
} dpt_maps;

/* Compute the maps of `frames`, host memory to host memory; they are complete on return. On failure the content of
 * the buffers is undefined.
 *
 * DPT_BAD_INPUT: a NULL or out-of-range argument, no map wanted. DPT_CONTRACT_ERROR: a map whose head the bundle
 * lacks, or a size or batch outside the engine's profile. DPT_BACKEND_ERROR: the backend failed. */
DPT_API dpt_status dpt_infer(dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps);

/* The same for memory on the GPU of the handle: frames->data and the maps are device pointers, the format is DPT_RGB
 * without padding. `stream` is a cudaStream_t (NULL: the legacy default stream) on which the pixels are ready. An
 * engine's maps are ready on that stream: synchronise it, or enqueue behind it, before you read them, and keep all
 * buffers until then. With ONNX Runtime they are complete on return.
 *
 * Errors as dpt_infer(), and DPT_CONTRACT_ERROR on a backend that has no GPU. */
DPT_API dpt_status dpt_infer_device(dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps, void *stream);

/* The largest batch of frames of this size that one call takes; 0 where memory alone sets the limit, and for an
 * argument that cannot be used. */
DPT_API int32_t dpt_largest_batch(const dpt_runtime *runtime, int32_t height, int32_t width);

/* ------------------------------------------------------------------------------------------------- information --- */

/* Which maps the bundle has: the sum of the bits below; 0 for a NULL handle. */
#define DPT_HAS_DEPTH 1u
#define DPT_HAS_NORMALS 2u
#define DPT_HAS_ALPHA 4u
DPT_API uint32_t dpt_heads(const dpt_runtime *runtime);

/* The contract of the bundle as JSON (UTF-8): heads, input size, tensors with shapes, units and ranges. It lives as
 * long as the handle. NULL for a NULL handle. */
DPT_API const char *dpt_contract_json(const dpt_runtime *runtime);

/* One of "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu". It lives as long as the process. */
DPT_API const char *dpt_backend_name(const dpt_runtime *runtime);

/* Which backend and file were taken, and why each one preferred to it was not; with an engine also whether CUDA graphs
 * are in use and, where they are not, why, as of this call. For a log. It lives as long as the handle. */
DPT_API const char *dpt_reason(const dpt_runtime *runtime);

/* Why the last call of this thread failed, as an instruction: what was expected, what was received, what to do. ""
 * after a call that succeeded. It lives until this thread's next call into this library. */
DPT_API const char *dpt_last_error(void);

/* The library's version, such as "0.1.0"; DPT_VERSION is the version of this header. */
DPT_API const char *dpt_version(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* DPT_RUNTIME_H */
