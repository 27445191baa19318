// The TensorRT or TensorRT-RTX library, depending on the headers that this file is compiled with, and its log.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>

#include <NvInfer.h>

#include "../library.h"

namespace dpt_impl {

// Collects the errors that TensorRT logs, for error messages. Thread-safe, because TensorRT logs from its own threads.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, nvinfer1::AsciiChar const *message) noexcept override;
    // Returns the collected errors in one line, and clears them.
    std::string take_errors();

private:
    std::mutex mutex_;
    std::deque<std::string> errors_; // the most recent ones, without repetitions
};

// The TensorRT library, opened at run time.
class TensorRtLibrary {
public:
    // Throws Error(DPT_MISSING_LIBRARY).
    static const TensorRtLibrary &get();

    std::string version() const;
    nvinfer1::IRuntime *create_runtime(Logger &logger) const;

private:
    TensorRtLibrary();
    Library library_;
};

} // namespace dpt_impl
