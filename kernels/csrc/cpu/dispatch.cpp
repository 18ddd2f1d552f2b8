// Picks the instruction set when a kernel is first called. Built alone, without any set's flags.

#include <cstdlib>
#include <cstring>

#include "biwkv.h"

// Every kernel: its name, its argument.
#define EACH_KERNEL(do)                \
    do(biwkv_forward, BiwkvCall)       \
    do(biwkv_backward, BiwkvCall)      \
    do(layer_forward, LayerCall)       \
    do(aligned_forward, AlignedCall)   \
    do(fusion_features, FusionCall)    \
    do(fusion_gate, FusionCall)        \
    do(fusion_sum, FusionCall)         \
    do(enlarge, UpsampleCall)          \
    do(local, LocalCall)               \
    do(project_forward, ProjectCall)   \
    do(project_backward, ProjectCall)  \
    do(finish_forward, FinishCall)     \
    do(finish_backward, FinishCall)    \
    do(norm_forward, NormCall)         \
    do(norm_backward, NormCall)

#define DECLARE_PORTABLE(kernel, call) extern "C" void kernel##_portable(const call*);
EACH_KERNEL(DECLARE_PORTABLE)
#ifdef WITH_X86
#define DECLARE_X86(kernel, call)                    \
    extern "C" void kernel##_avx2(const call*); \
    extern "C" void kernel##_avx512(const call*);
EACH_KERNEL(DECLARE_X86)
#endif

namespace {

struct Kernels {
    const char* name;
#define POINTER(kernel, call) void (*kernel)(const call*);
    EACH_KERNEL(POINTER)
};

#define AVX512(kernel, call) kernel##_avx512,
#define AVX2(kernel, call) kernel##_avx2,
#define PORTABLE(kernel, call) kernel##_portable,

// Best first; the last runs everywhere.
const Kernels all[] = {
#ifdef WITH_X86
    {"avx512", EACH_KERNEL(AVX512)},
    {"avx2", EACH_KERNEL(AVX2)},
#endif
    {"portable", EACH_KERNEL(PORTABLE)},
};

bool runs_here(const Kernels& kernels) {
#ifdef WITH_X86
    __builtin_cpu_init();
    if (!std::strcmp(kernels.name, "avx512")) 
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (!std::strcmp(kernels.name, "avx2")) 
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
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
#define ENTRY(kernel, call) \
    EXPORT void rwkvfusion_##kernel(const call* arguments) { chosen().kernel(arguments); }
EACH_KERNEL(ENTRY)
