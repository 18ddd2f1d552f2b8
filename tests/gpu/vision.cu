// A model of how Vision-RWKV lays its forward pass out, to measure that layout: a block has 32 token segments times 32
// channels, the lanes of a warp are segments, every step keeps running maxima, and the suffix loses token by token.

struct Call {
    long long length, channels;
    const float *k, *v, *lam, *u;
    float* y;
};

struct State {
    float sum, weight, top;
};

static __device__ State join(State a, State b) {
    float top = fmaxf(a.top, b.top), left = __expf(a.top - top), right = __expf(b.top - top);
    return {a.sum * left + b.sum * right, a.weight * left + b.weight * right, top};
}

extern "C" __global__ void __launch_bounds__(1024) vision_forward(const __grid_constant__ Call call) {
    __shared__ State before[32][32], after[32][32];
    int segment = threadIdx.x % 32, lane = threadIdx.x / 32, tiles = int(call.channels / 32);
    long long channel = blockIdx.x % tiles * 32 + lane, base = blockIdx.x / tiles * call.length * call.channels + channel;
    long long share = (call.length + 31) / 32, first = segment * share, last = min(first + share, call.length);
    float lam = call.lam[channel], u = call.u[channel];
    State prefix = {0.0f, 0.0f, -1e30f}, suffix = prefix;
    for (long long t = first; t < last; t++) {
        float k = call.k[base + t * call.channels], v = call.v[base + t * call.channels];
        prefix.top -= lam;
        prefix = join(prefix, {v, 1.0f, k});
        suffix = join(suffix, {v, 1.0f, k - lam * float(t - first)});
    }
    before[lane][segment] = prefix, after[lane][segment] = suffix;
    __syncthreads();
    prefix = suffix = {0.0f, 0.0f, -1e30f};
    for (int i = 0; i < segment; i++) {
        prefix.top -= lam * float(share);
        prefix = join(prefix, before[lane][i]);
    }
    for (int i = 31; i >= segment; i--) {
        suffix.top -= lam * float(share);
        suffix = join(suffix, after[lane][i]);
    }
    for (long long t = first; t < last; t++) {
        float k = call.k[base + t * call.channels], v = call.v[base + t * call.channels];
        float own = __expf(k - suffix.top);
        suffix.sum -= own * v, suffix.weight -= own, suffix.top += lam;
        State all = join(join(prefix, suffix), {v, 1.0f, k + u});
        call.y[base + t * call.channels] = all.sum / all.weight;
        prefix.top -= lam;
        prefix = join(prefix, {v, 1.0f, k});
    }
}
