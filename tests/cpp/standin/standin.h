// What graphs.cpp asks of the stand-in for TensorRT and CUDA, and what it tells.
#pragma once

#include <string>

struct Standin {
    std::string broken; // rules of TensorRT and CUDA that were broken, one after the other
    int enqueued = 0, captured = 0, replayed = 0, contexts = 0, graphs = 0, memory = 0; // the last three: alive now
    bool refuse_capture = false; // CUDA invalidates the next capture
    std::string compiled;        // what TensorRT-RTX's cache holds
    std::string order;           // what waited for what, and where TensorRT ran: "7 waits for 0; runs on 7; "
};

extern "C" Standin *standin(void);
