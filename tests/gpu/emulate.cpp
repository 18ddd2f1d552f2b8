// The CUDA kernels as a C++ library, for machines without a GPU.
#include "emulate.h"

#include "../../kernels/csrc/cuda/biwkv.cu"

static void (*kernel)(const Call&);
static const Call* argument;

// `backwards`: blocks, and threads between two barriers, in the opposite order. No result may depend on it.
// 0; 1 where a block's threads did not all come to a barrier.
extern "C" int emulate(void (*function)(const Call&), unsigned blocks, unsigned threads, const Call* call, int backwards) {
    kernel = function, argument = call;
    gridDim.x = blocks, blockDim.x = threads;
    for (unsigned i = 0; i < blocks; i++) {
        blockIdx.x = backwards ? blocks - 1 - i : i;
        if (!Block::instance().run(threads, [] { kernel(*argument); }, backwards)) return 1;
    }
    return 0;
}
