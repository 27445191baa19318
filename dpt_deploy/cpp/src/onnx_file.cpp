// Walks the protobuf encoding and skips all weights, as dpt_deploy/core/onnx_file.py does. Accepts less than protobuf:
// what it cannot read, such as groups, is refused.
#include "onnx_file.h"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sys/types.h>
#include <utility>
#include <vector>

#include "error.h"

namespace dpt_impl {
namespace {

constexpr std::uint64_t kMaxFields = 5'000'000; // a graph of a ViT-L has 100,000
constexpr std::uint64_t kMaxEntry = 1 << 20;    // [bytes] of metadata, such as the contract with 3 kB

// The messages of onnx.proto that lead to tensors and metadata.
enum class Message { skipped, model, graph, node, attribute, sparse, training, function, tensor, metadata, external };

Message nested(Message message, std::uint64_t number) {
    switch (message) {
    case Message::model:
        return number == 7    ? Message::graph
               : number == 14 ? Message::metadata
               : number == 20 ? Message::training
               : number == 25 ? Message::function
                              : Message::skipped;
    case Message::graph:
        return number == 1    ? Message::node
               : number == 5  ? Message::tensor
               : number == 15 ? Message::sparse
                              : Message::skipped;
    case Message::node: return number == 5 ? Message::attribute : Message::skipped;
    case Message::attribute:
        return number == 5 || number == 10    ? Message::tensor
               : number == 6 || number == 11  ? Message::graph
               : number == 22 || number == 23 ? Message::sparse
                                              : Message::skipped;
    case Message::sparse: return number == 1 || number == 2 ? Message::tensor : Message::skipped;
    case Message::training: return number == 1 || number == 2 ? Message::graph : Message::skipped;
    case Message::function:
        return number == 7 ? Message::node : number == 11 ? Message::attribute : Message::skipped;
    case Message::tensor: return number == 13 ? Message::external : Message::skipped;
    default: return Message::skipped;
    }
}

[[noreturn]] void fail_invalid() { fail(DPT_BAD_BUNDLE, "it is not a protobuf message, or truncated"); }

// A field of a message: `number` is 0 if it holds a number, otherwise its content lies in [begin, end).
struct Field {
    std::uint64_t number, begin, end;
};

class Reader {
public:
    explicit Reader(const std::string &path) : file_(std::fopen(path.c_str(), "rb"), std::fclose) {
        if (!file_ || fseeko(file_.get(), 0, SEEK_END) != 0) fail(DPT_BAD_BUNDLE, std::strerror(errno));
        size_ = static_cast<std::uint64_t>(ftello(file_.get()));
        if (size_ == 0) fail(DPT_BAD_BUNDLE, "it is empty");
    }

    std::uint64_t size() const { return size_; }

    void seek(std::uint64_t position) {
        if (fseeko(file_.get(), static_cast<off_t>(position), SEEK_SET) != 0) fail_invalid();
        position_ = position;
    }

    // Reads the field at the current position of a message that ends at `end`, and moves behind it.
    Field field(std::uint64_t end) {
        const std::uint64_t tag = varint(end);
        Field field{0, position_, position_};
        std::uint64_t size = 0;
        switch (tag & 7U) {
        case 0: varint(end); break;
        case 1: size = 8; break;
        case 2:
            size = varint(end);
            field.number = tag >> 3U;
            break;
        case 5: size = 4; break;
        default: fail_invalid();
        }
        if (tag >> 3U == 0 || size > end - position_) fail_invalid();
        field.begin = position_;
        field.end = position_ + size;
        if (size > 0) seek(field.end);
        return field;
    }

    std::string text(const Field &field) {
        std::string text(static_cast<std::size_t>(field.end - field.begin), '\0');
        seek(field.begin);
        if (std::fread(text.data(), 1, text.size(), file_.get()) != text.size()) fail_invalid();
        position_ = field.end;
        return text;
    }

    // The key and value of a StringStringEntryProto.
    std::pair<std::string, std::string> entry(const Field &entry) {
        std::pair<std::string, std::string> result;
        if (entry.end - entry.begin > kMaxEntry) fail(DPT_BAD_BUNDLE, "an entry has more than ", kMaxEntry, " bytes");
        seek(entry.begin);
        while (position_ < entry.end) {
            const Field part = field(entry.end);
            if (part.number == 1) result.first = text(part);
            if (part.number == 2) result.second = text(part);
        }
        return result;
    }

    std::uint64_t position() const { return position_; }

private:
    std::uint64_t varint(std::uint64_t end) {
        std::uint64_t value = 0;
        for (unsigned shift = 0; position_ < end && shift < 70; shift += 7) {
            const int byte = std::getc(file_.get());
            if (byte == EOF) fail_invalid();
            ++position_;
            if (shift < 64) value |= static_cast<std::uint64_t>(byte & 127) << shift;
            if (byte < 128) return value;
        }
        fail_invalid();
    }

    std::unique_ptr<std::FILE, int (*)(std::FILE *)> file_;
    std::uint64_t size_ = 0, position_ = 0;
};

} // namespace

OnnxFile read_onnx_file(const std::string &path) {
    Reader reader(path);
    OnnxFile result;
    std::vector<std::pair<Message, Field>> pending = {{Message::model, {0, 0, reader.size()}}};
    std::uint64_t fields = 0;
    while (!pending.empty()) {
        const auto [message, range] = pending.back();
        pending.pop_back();
        if (message == Message::metadata) {
            const auto [key, value] = reader.entry(range);
            if (result.metadata.emplace(key, value).first->second != value) {
                fail(DPT_BAD_BUNDLE, "its metadata has two values for '", key, "'");
            }
            continue;
        }
        if (message == Message::external) {
            const auto [key, value] = reader.entry(range);
            if (key == "location") result.external.insert(value);
            continue;
        }
        reader.seek(range.begin);
        while (reader.position() < range.end) {
            if (++fields > kMaxFields) fail(DPT_BAD_BUNDLE, "it has more than ", kMaxFields, " fields");
            const Field field = reader.field(range.end);
            const Message kind = nested(message, field.number);
            if (kind != Message::skipped) pending.emplace_back(kind, field);
        }
    }
    return result;
}

} // namespace dpt_impl
