/* A stand-in for NVIDIA's management library: what it answers comes from the environment, so that tests can have GPUs,
 * broken drivers and lost devices on any machine. Only the calls that the platform makes are here.
 *
 *   NVML_DOUBLE_GPUS   how many devices (default 0)
 *   NVML_DOUBLE_INIT   what initialising answers (default 0, success; 9 driver not loaded, 18 version mismatch)
 *   NVML_DOUBLE_LOST   number of a device that has fallen off the bus
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, GPU_IS_LOST = 15 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static size_t number_of(void *device) { return (size_t)device - 1; }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return setting("NVML_DOUBLE_INIT", SUCCESS); }
int nvmlInit_v2(void) { return setting("NVML_DOUBLE_INIT", SUCCESS); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int result) {
    switch (result) {
        case 9: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        case 18: return "Driver/library version mismatch";
        default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = (unsigned)setting("NVML_DOUBLE_GPUS", 0); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if ((int)index >= setting("NVML_DOUBLE_GPUS", 0)) return INVALID_ARGUMENT;
    if ((int)index == setting("NVML_DOUBLE_LOST", -1)) return GPU_IS_LOST;
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned int length) {
    snprintf(text, length, "GPU-0000000%zu-double", number_of(device));
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    char text[80];
    for (size_t index = 0; (int)index < setting("NVML_DOUBLE_GPUS", 0); index++) {
        nvmlDeviceGetUUID((void *)(index + 1), text, sizeof text);
        if (strcmp(text, uuid) == 0) return nvmlDeviceGetHandleByIndex_v2((unsigned)index, device);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(void *device, char *text, unsigned int length) {
    (void)device;
    snprintf(text, length, "NVIDIA H200");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    memory->total = 141ULL << 30;
    memory->used = (number_of(device) + 1) << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *utilization) {
    utilization->gpu = 20 * (unsigned)(number_of(device) + 1);
    utilization->memory = 10;
    return SUCCESS;
}
