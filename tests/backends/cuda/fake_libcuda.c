// A libcuda that loads nothing and writes down what it is asked, one line a call, for a test to read.
#include <stdio.h>
#include <string.h>
#include <stdint.h>
#include <stdlib.h>

static FILE *out(void) { return fopen(getenv("FAKE_LIBCUDA"), "a"); }
static int fails(const char *name) { const char *which = getenv("FAKE_LIBCUDA_FAILS"); return which && !strcmp(which, name) ? 209 : 0; }

int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)0x1000;
    FILE *f = out(); fprintf(f, "load %.4s\n", (const char *)image); fclose(f);
    return fails("load");
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)0x2000;
    FILE *f = out(); fprintf(f, "function %lx %s\n", (unsigned long)(uintptr_t)module, name); fclose(f);
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    FILE *f = out(); fprintf(f, "attribute %lx %d %d\n", (unsigned long)(uintptr_t)function, attribute, value); fclose(f);
    return 0;
}
// The arguments of the test's kernel: a pointer, a number, a float, and one scratch pointer.
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    FILE *f = out();
    fprintf(f, "launch %lx %u,%u,%u %u,%u,%u %u %lx %lx %d %g %lx %d\n", (unsigned long)(uintptr_t)function, x, y, z, bx, by, bz,
            shared, (unsigned long)(uintptr_t)stream, *(unsigned long *)arguments[0], *(int *)arguments[1],
            *(float *)arguments[2], *(unsigned long *)arguments[3], extra != 0);
    fclose(f);
    return fails("launch");
}
int cuGetErrorString(int code, const char **text) { *text = "no kernel image is available"; return 0; }
