// How graphs.cpp controls and observes the fake of TensorRT and CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct FakeTensorRt {
    std::string violations; // of the rules of TensorRT and CUDA
    int enqueued = 0, captured = 0, replayed = 0;  // number of calls
    int contexts = 0, graphs = 0, allocations = 0; // number of existing objects
    int contexts_made = 0, allocations_made = 0;
    std::size_t largest = SIZE_MAX; // size of the largest allocation that succeeds, in bytes
    bool fail_capture = false; // captures fail
    bool capturable = true;    // what a context of TensorRT-RTX answers
    bool fail_scratch = false; // the size of the scratch memory cannot be computed
    std::string cache;         // content of TensorRT-RTX's cache of compiled kernels
    std::string stream_log;    // waits and runs on streams, such as "7 waits for 0; runs on 7; "
};

extern "C" FakeTensorRt *fake_tensorrt(void);
