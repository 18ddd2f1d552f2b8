// A GPU in C++, for one block at a time: every thread is a fiber, a barrier is a switch to the next.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

struct Dimension {
    unsigned x;
};
static Dimension threadIdx, blockIdx, blockDim, gridDim;

template <class T> static T max(T a, T b) { return a > b ? a : b; }
template <class T> static T min(T a, T b) { return a < b ? a : b; }

template <class To, class From>
static To bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}
static int __float_as_int(float x) { return bits<int>(x); }
static unsigned __float_as_uint(float x) { return bits<unsigned>(x); }
static float __int_as_float(int x) { return bits<float>(x); }
static float __uint_as_float(unsigned x) { return bits<float>(x); }
static int __double2hiint(double x) { return int(bits<int64_t>(x) >> 32); }
static double __hiloint2double(int high, int low) { return bits<double>(int64_t(high) << 32 | unsigned(low)); }

// All threads of the block that are not done must arrive before any goes on.
struct Block {
    static constexpr size_t STACK = 128 << 10;
    std::vector<ucontext_t> fibers;
    std::vector<char> stacks, done;
    ucontext_t home;
    void (*work)();
    int any = 0, gathered = 0;
    unsigned arrived = 0, running = 0;

    static Block& instance() {
        static Block block;
        return block;
    }
    static void enter() {
        instance().work();
        instance().done[threadIdx.x] = 1;
    }

    void barrier() {
        unsigned mine = threadIdx.x;
        arrived++;
        swapcontext(&fibers[mine], &home);
        threadIdx.x = mine;
    }

    // Threads take turns upwards or downwards: where that matters, a barrier is missing.
    // False where some threads wait at a barrier and others are done: on a GPU, undefined.
    bool run(unsigned threads, void (*function)(), bool backwards) {
        work = function;
        fibers.resize(threads);
        done.assign(threads, 0);
        stacks.resize(threads * STACK);
        for (unsigned i = 0; i < threads; i++) {
            getcontext(&fibers[i]);
            fibers[i].uc_stack.ss_sp = &stacks[i * STACK];
            fibers[i].uc_stack.ss_size = STACK;
            fibers[i].uc_link = &home;
            makecontext(&fibers[i], enter, 0);
        }
        for (;;) {
            arrived = 0;
            for (unsigned i = 0; i < threads; i++) {
                unsigned next = threadIdx.x = backwards ? threads - 1 - i : i;
                if (!done[next]) swapcontext(&home, &fibers[next]);
            }
            gathered = any, any = 0;
            if (arrived == 0) return true;
            if (arrived != threads) return false;
        }
    }
};

static void __syncthreads() { Block::instance().barrier(); }
static int __syncthreads_or(int predicate) {
    Block::instance().any |= predicate != 0;
    Block::instance().barrier();
    return Block::instance().gathered;
}
