/* dpt_minimal BUNDLE: print the depth at the centre of a uniform gray image. Plain C. */
#include <dpt_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEIGHT = 480, WIDTH = 640 };

int main(int argc, char **argv) {
    dpt_runtime *runtime = NULL;
    if (argc != 2) {
        fprintf(stderr, "usage: %s BUNDLE\n", argv[0]);
        return 2;
    }
    if (dpt_load(argv[1], NULL, &runtime) != DPT_OK) { /* NULL: default options, the best backend */
        fprintf(stderr, "%s\n", dpt_last_error());
        return 1;
    }
    printf("%s\n", dpt_reason(runtime));

    uint8_t *pixels = malloc(HEIGHT * WIDTH);
    float *depth = malloc(sizeof(float) * HEIGHT * WIDTH);
    int failed = pixels == NULL || depth == NULL;
    if (!failed) {
        memset(pixels, 128, HEIGHT * WIDTH);
        const dpt_frames frames = {
            .data = pixels, .batch = 1, .height = HEIGHT, .width = WIDTH, .format = DPT_GRAY};
        const dpt_maps maps = {.depth = depth}; /* NULL: do not return the other maps */
        failed = dpt_infer(runtime, &frames, &maps) != DPT_OK;
        if (failed) fprintf(stderr, "%s\n", dpt_last_error());
    }
    if (!failed) printf("depth at the centre: %.3f m\n", (double)depth[HEIGHT / 2 * WIDTH + WIDTH / 2]);
    free(depth);
    free(pixels);
    dpt_unload(runtime);
    return failed;
}
