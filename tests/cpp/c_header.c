/* Compiles dpt_runtime.h as C11 with warnings as errors, and calls every function from C. */
#include <dpt_runtime.h>

#include <stdio.h>
#include <string.h>

/* The layout of the structs in ABI 1, on 64-bit machines. */
_Static_assert(sizeof(dpt_options) == 104, "dpt_options changed");
_Static_assert(offsetof(dpt_options, onnxruntime_library) == 24, "dpt_options changed");
_Static_assert(offsetof(dpt_options, reserved) == 40, "dpt_options changed");
_Static_assert(sizeof(dpt_frames) == 40, "dpt_frames changed");
_Static_assert(offsetof(dpt_frames, row_stride) == 24, "dpt_frames changed");
_Static_assert(sizeof(dpt_maps) == 24, "dpt_maps changed");
_Static_assert(DPT_OK == 0 && DPT_INTERNAL_ERROR == 7 && DPT_GRAY == 4, "constants changed");
_Static_assert(DPT_PRECISION_FP32 == 3 && DPT_PRECISION_INT8 == 4 && DPT_PRECISION_FP8 == 5, "constants changed");

static int failures = 0;

static void expect(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "FAILED: %s (last error: %s)\n", what, dpt_last_error());
        failures += 1;
    }
}

int main(void) {
    dpt_options options = dpt_options_default();
    dpt_runtime *runtime = (dpt_runtime *)&options; /* must become NULL on failure */
    const dpt_frames frames = {.data = (const uint8_t *)"abc", .batch = 1, .height = 1, .width = 1, .format = DPT_RGB};
    float depth = 0;
    const dpt_maps maps = {.depth = &depth};

    expect(strcmp(dpt_version(), DPT_VERSION) == 0, "header and library have the same version");
    expect(options.size == sizeof options && options.backend == DPT_BACKEND_AUTO, "default options");
    expect(strcmp(dpt_last_error(), "") == 0, "no error before the first failure");

    expect(dpt_load("/no/such/bundle", NULL, &runtime) == DPT_BAD_BUNDLE, "missing bundle");
    expect(runtime == NULL, "handle is NULL on failure");
    expect(strstr(dpt_last_error(), "/no/such/bundle") != NULL, "the message names the folder");
    expect(strstr(dpt_last_error(), "python -m dpt_deploy.export") != NULL, "the message contains a command");
    expect(dpt_load(NULL, &options, &runtime) == DPT_BAD_INPUT, "NULL bundle");
    expect(dpt_load("x", &options, NULL) == DPT_BAD_INPUT, "NULL handle pointer");

    options.size = 4;
    expect(dpt_load("x", &options, &runtime) == DPT_BAD_INPUT, "options struct of another size");
    expect(strstr(dpt_last_error(), "dpt_options_default") != NULL, "the message names dpt_options_default");
    options = dpt_options_default();
    options.backend = 5;
    expect(dpt_load("x", &options, &runtime) == DPT_BAD_INPUT, "unknown backend");
    options = dpt_options_default();
    options.precision = -1;
    expect(dpt_load("x", &options, &runtime) == DPT_BAD_INPUT, "unknown precision");
    options.precision = DPT_PRECISION_FP8 + 1;
    expect(dpt_load("x", &options, &runtime) == DPT_BAD_INPUT, "precision after the last");
    options = dpt_options_default();
    options.threads = -2;
    expect(dpt_load("x", &options, &runtime) == DPT_BAD_INPUT, "negative threads");
    options = dpt_options_default();
    options.reserved[7] = 1;
    expect(dpt_load("x", &options, &runtime) == DPT_BAD_INPUT, "reserved field");

    expect(dpt_infer(NULL, &frames, &maps) == DPT_BAD_INPUT, "NULL handle");
    expect(strcmp(dpt_last_error(), "runtime: expected a pointer, received NULL.") == 0, "message for a NULL handle");
    expect(dpt_infer_device(NULL, &frames, &maps, NULL) == DPT_BAD_INPUT, "NULL handle, device");
    expect(dpt_largest_batch(NULL, 1, 1) == 0, "NULL handle, batch");
    expect(dpt_heads(NULL) == 0u, "NULL handle, heads");
    expect(dpt_contract_json(NULL) == NULL && dpt_reason(NULL) == NULL, "NULL handle, strings");
    expect(dpt_backend_name(NULL) == NULL, "NULL handle, backend");
    dpt_unload(NULL);
    expect(strcmp(dpt_last_error(), "") == 0, "a successful call clears the message");
    return failures != 0;
}
