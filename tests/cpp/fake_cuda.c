/* A fake of the CUDA driver: one GPU with the compute capability in the environment variable FAKE_CAPABILITY (9.0). */
#include <stdlib.h>

#define PUBLIC __attribute__((visibility("default")))

PUBLIC int cuInit(unsigned flags);
PUBLIC int cuDeviceGetCount(int *count);
PUBLIC int cuDeviceGet(int *device, int ordinal);
PUBLIC int cuDeviceGetAttribute(int *value, int attribute, int device);
PUBLIC int cuDevicePrimaryCtxRetain(void **context, int device);
PUBLIC int cuDevicePrimaryCtxRelease_v2(int device);
PUBLIC int cuCtxPushCurrent_v2(void *context);
PUBLIC int cuCtxPopCurrent_v2(void **context);
PUBLIC int cuStreamSynchronize(void *stream);

int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? 0 : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *capability = getenv("FAKE_CAPABILITY");
    if (capability == NULL || device != 0) return 1;
    *value = attribute == 75 ? capability[0] - '0' : capability[2] - '0';
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = NULL, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuCtxPushCurrent_v2(void *context) { return context != NULL; }
int cuCtxPopCurrent_v2(void **context) { return *context = NULL, 0; }
int cuStreamSynchronize(void *stream) { return stream == NULL; }
