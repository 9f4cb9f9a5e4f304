// Parser of NTU RGB+D .skeleton text: bytes or paths in, NumPy arrays out, without the GIL, one file per thread.
//
//   file:   frame count, frames        frame: body count, bodies
//   body:   line of 10 values, the first its tracking id; line with 25; 25 joint lines
//   joint:  x y z (metres), then 8 or 9 values that are counted but not converted

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <variant>
#include <vector>

namespace py = pybind11;

namespace {

constexpr int kJoints = 25;

// One row per body and frame, in file order. Memory is proportional to the file whatever its counts claim.
struct Recording {
  int64_t num_frames = 0;
  std::vector<float> joints;      // (rows, 25, 3)
  std::vector<int32_t> frames;    // (rows,)
  std::vector<int32_t> bodies;    // (rows,) index into ids
  std::vector<uint64_t> ids;      // one per body, in order of appearance
};

struct ParseError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

bool is_space(char c) { return static_cast<unsigned char>(c) <= ' '; }

class Lines {
 public:
  explicit Lines(std::string_view text) : next_(text.data()), end_(text.data() + text.size()) {}

  // Moves to the next line, whose text is then [at, stop).
  void advance(const char* expected) {
    ++number_;
    if (next_ == end_) fail(std::string("file ends, expected ") + expected);
    at = next_;
    const void* newline = std::memchr(at, '\n', static_cast<size_t>(end_ - at));
    stop = newline ? static_cast<const char*>(newline) : end_;
    next_ = newline ? stop + 1 : end_;
  }

  std::string_view token() {
    while (at != stop && is_space(*at)) ++at;
    const char* begin = at;
    while (at != stop && !is_space(*at)) ++at;
    return {begin, static_cast<size_t>(at - begin)};
  }

  template <typename Integer>
  Integer integer(const char* what) {
    const std::string_view text = token();
    Integer value{};
    const auto [last, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || last != text.data() + text.size()) fail(std::string("expected ") + what);
    return value;
  }

  float coordinate() {
    while (at != stop && is_space(*at)) ++at;
    if (at != stop && *at == '+') ++at;
    double value = 0;
    const auto [last, error] = std::from_chars(at, stop, value);
    const float result = static_cast<float>(value);
    if (error != std::errc() || !(last == stop || is_space(*last)) || !std::isfinite(result))
      fail("expected finite numbers x y z of a joint");
    at = last;
    return result;
  }

  // Number of tokens left on the line. No branch in the loop, so that it becomes vector code.
  int count_tokens() const {
    if (at == stop) return 0;
    int count = !is_space(*at);
    for (const char* c = at + 1; c < stop; ++c) count += is_space(c[-1]) & !is_space(*c);
    return count;
  }

  void expect_end_of_line(const char* what) {
    if (count_tokens() != 0) fail(std::string("expected nothing after ") + what);
  }

  void expect_end_of_file() {
    while (next_ != end_) {
      advance("");
      if (count_tokens() != 0) fail("expected the end of the file after the last frame");
    }
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw ParseError("line " + std::to_string(number_) + ": " + message);
  }

  const char* at = nullptr;
  const char* stop = nullptr;

 private:
  const char* next_;
  const char* end_;
  int64_t number_ = 0;
};

int64_t parse_count(Lines& lines, const char* what) {
  lines.advance(what);
  const auto count = lines.integer<int64_t>(what);
  if (count < 0) lines.fail(std::string("expected ") + what + ", got a negative number");
  lines.expect_end_of_line(what);
  return count;
}

// Index of the body with this id that is not yet in this frame; an id that occurs twice in a frame is two bodies.
int32_t find_body(Recording& recording, std::vector<int64_t>& last_frame, uint64_t id, int64_t frame) {
  for (size_t body = 0; body < recording.ids.size(); ++body) {
    if (recording.ids[body] == id && last_frame[body] != frame) {
      last_frame[body] = frame;
      return static_cast<int32_t>(body);
    }
  }
  recording.ids.push_back(id);
  last_frame.push_back(frame);
  return static_cast<int32_t>(recording.ids.size() - 1);
}

void parse_body(Lines& lines, Recording& recording, std::vector<int64_t>& last_frame, int64_t frame) {
  lines.advance("a body line of 10 values");
  const auto id = lines.integer<uint64_t>("the id of a body, a non-negative integer");
  const int values = 1 + lines.count_tokens();
  if (values != 10) lines.fail("expected 10 values of a body, got " + std::to_string(values));
  if (parse_count(lines, "the number of joints, 25") != kJoints) lines.fail("expected the number of joints, 25");
  recording.bodies.push_back(find_body(recording, last_frame, id, frame));
  recording.frames.push_back(static_cast<int32_t>(frame));
  for (int joint = 0; joint < kJoints; ++joint) {
    lines.advance("a joint line of 11 or 12 values");
    for (int axis = 0; axis < 3; ++axis) recording.joints.push_back(lines.coordinate());
    const int fields = 3 + lines.count_tokens();
    if (fields != 11 && fields != 12) lines.fail("expected 11 or 12 values of a joint, got " + std::to_string(fields));
  }
}

Recording parse(std::string_view text) {
  Lines lines(text);
  Recording recording;
  std::vector<int64_t> last_frame;
  // A joint line is seldom shorter than 75 characters: one float of the result per 25 of the file.
  recording.joints.reserve(text.size() / 25);
  recording.num_frames = parse_count(lines, "the number of frames");
  if (recording.num_frames > INT32_MAX) lines.fail("expected the number of frames, got more than 2147483647");
  for (int64_t frame = 0; frame < recording.num_frames; ++frame) {
    const int64_t bodies = parse_count(lines, "the number of bodies in a frame");
    for (int64_t body = 0; body < bodies; ++body) parse_body(lines, recording, last_frame, frame);
  }
  lines.expect_end_of_file();
  return recording;
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

std::string_view read_file(const std::string& path, std::string& buffer) {
  const std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "rb"));
  if (!file) throw ParseError(std::generic_category().message(errno));
  constexpr size_t kBlock = size_t{1} << 20;
  size_t size = 0, got = 0;
  do {
    if (buffer.size() < size + kBlock) buffer.resize(2 * size + kBlock);
    got = std::fread(buffer.data() + size, 1, kBlock, file.get());
    size += got;
  } while (got == kBlock);
  if (std::ferror(file.get())) throw ParseError(std::generic_category().message(errno));
  return {buffer.data(), size};
}

using Outcome = std::variant<Recording, std::string>;

std::vector<Outcome> parse_all(const std::vector<std::string>& paths, int num_threads) {
  std::vector<Outcome> outcomes(paths.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    std::string buffer;
    for (size_t i = next++; i < paths.size(); i = next++) {
      try {
        outcomes[i] = parse(read_file(paths[i], buffer));
      } catch (const std::exception& error) {
        outcomes[i] = std::string(error.what());
      }
    }
  };
  std::vector<std::thread> threads;
  const size_t wanted = std::min(paths.size(), static_cast<size_t>(num_threads));
  try {
    while (threads.size() + 1 < wanted) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // The threads that could be started, and this one, do the work.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  const T* data = owned->data();
  py::capsule owner(owned.get(), [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  owned.release();
  return py::array_t<T>(std::move(shape), data, owner);
}

py::tuple to_tuple(Recording&& recording) {
  const auto rows = static_cast<py::ssize_t>(recording.frames.size());
  const auto bodies = static_cast<py::ssize_t>(recording.ids.size());
  return py::make_tuple(recording.num_frames, to_numpy(std::move(recording.joints), {rows, kJoints, 3}),
                        to_numpy(std::move(recording.frames), {rows}), to_numpy(std::move(recording.bodies), {rows}),
                        to_numpy(std::move(recording.ids), {bodies}));
}

py::tuple parse_bytes(const py::bytes& data) {
  const auto text = static_cast<std::string_view>(data);
  Recording recording;
  try {
    py::gil_scoped_release release;
    recording = parse(text);
  } catch (const ParseError& error) {
    throw py::value_error(error.what());
  }
  return to_tuple(std::move(recording));
}

py::list parse_files(const std::vector<std::string>& paths, int num_threads) {
  if (num_threads < 1) throw py::value_error("num_threads: expected at least 1, got " + std::to_string(num_threads));
  std::vector<Outcome> outcomes;
  {
    py::gil_scoped_release release;
    outcomes = parse_all(paths, num_threads);
  }
  py::list result;
  for (Outcome& outcome : outcomes) {
    if (auto* recording = std::get_if<Recording>(&outcome)) {
      result.append(to_tuple(std::move(*recording)));
    } else {
      result.append(std::get<std::string>(outcome));
    }
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_io, m) {
  m.doc() = "Parser of NTU RGB+D .skeleton files.";
  m.def("parse", &parse_bytes, py::arg("data"),
        "(num_frames, joints (R, 25, 3) float32, frames (R,) int32, bodies (R,) int32, ids (P,) uint64) of one file's "
        "bytes; ValueError names the line.");
  m.def("parse_files", &parse_files, py::arg("paths"), py::arg("num_threads"),
        "For each path the tuple of `parse`, or the text of what is wrong with the file.");
}
