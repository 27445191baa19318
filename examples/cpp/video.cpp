// dpt_video BUNDLE [VIDEO|CAMERA]: show a video with its foreground in colour and its background in gray.
//
// CAMERA is a camera's number, by default 0. Press q or Escape to quit.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include <dpt_runtime.hpp>

#include <opencv2/core.hpp>
#include <opencv2/highgui.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>

namespace {

bool is_number(const std::string &text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

void run(const std::string &bundle, const std::string &source) {
    const dpt::Runtime runtime(bundle);
    std::printf("%s\n", runtime.reason().c_str());
    cv::VideoCapture capture;
    const bool opened = is_number(source) ? capture.open(std::stoi(source)) : capture.open(source);
    if (!opened) throw std::runtime_error(source + ": expected a video file or the number of a camera.");
    cv::Mat frame, gray, display, alpha;
    while (capture.read(frame)) { // 8-bit BGR; rows may be padded
        alpha.create(frame.size(), CV_32F);
        const dpt::Image image{frame.data, frame.rows, frame.cols, dpt::Pixels::bgr,
                               static_cast<std::int64_t>(frame.step)};
        runtime.infer(image, {{}, {}, {alpha.ptr<float>(), alpha.total()}});
        cv::cvtColor(frame, gray, cv::COLOR_BGR2GRAY);
        cv::cvtColor(gray, display, cv::COLOR_GRAY2BGR);
        frame.copyTo(display, alpha > 0.5);
        cv::imshow("dpt_video", display);
        const int key = cv::waitKey(1);
        if (key == 'q' || key == 27) break;
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2 && argc != 3) {
        std::fprintf(stderr, "usage: %s BUNDLE [VIDEO|CAMERA]\n", argv[0]);
        return 2;
    }
    try {
        run(argv[1], argc == 3 ? argv[2] : "0");
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
