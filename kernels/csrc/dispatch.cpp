// Picks the instruction set when a kernel is first called. Built alone, without any set's flags.

#include <cstdlib>
#include <cstring>

#include "biwkv.h"

#define DECLARE(isa)                                      \
    extern "C" void biwkv_forward_##isa(const BiwkvCall*); \
    extern "C" void biwkv_backward_##isa(const BiwkvCall*); \
    extern "C" void layer_forward_##isa(const LayerCall*);

DECLARE(portable)
#ifdef WITH_X86
DECLARE(avx2)
DECLARE(avx512)
#endif

namespace {

struct Kernels {
    const char* name;
    void (*forward)(const BiwkvCall*);
    void (*backward)(const BiwkvCall*);
    void (*layer)(const LayerCall*);
};

#define KERNELS(isa) {#isa, biwkv_forward_##isa, biwkv_backward_##isa, layer_forward_##isa}

// Best first; the last runs everywhere.
const Kernels all[] = {
#ifdef WITH_X86
    KERNELS(avx512),
    KERNELS(avx2),
#endif
    KERNELS(portable),
};

bool runs_here(const Kernels& kernels) {
#ifdef WITH_X86
    __builtin_cpu_init();
    if (!std::strcmp(kernels.name, "avx512")) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (!std::strcmp(kernels.name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return true;
}

// RWKVFUSION_ISA names a set, for tests and for comparisons; one that the machine lacks is passed over.
const Kernels& choose() {
    const char* wanted = std::getenv("RWKVFUSION_ISA");
    for (const Kernels& kernels : all)
        if (runs_here(kernels) && (!wanted || !std::strcmp(wanted, kernels.name))) return kernels;
    for (const Kernels& kernels : all)
        if (runs_here(kernels)) return kernels;
    std::abort();
}

const Kernels& chosen() {
    static const Kernels& kernels = choose();
    return kernels;
}

}  // namespace

EXPORT const char* rwkvfusion_isa() { return chosen().name; }
EXPORT void rwkvfusion_biwkv_forward(const BiwkvCall* call) { chosen().forward(call); }
EXPORT void rwkvfusion_biwkv_backward(const BiwkvCall* call) { chosen().backward(call); }
EXPORT void rwkvfusion_layer_forward(const LayerCall* call) { chosen().layer(call); }
