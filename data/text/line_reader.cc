#include "data/text/line_reader.h"

namespace trireme {
namespace {

constexpr size_t kReadBytes = size_t{1} << 18;

}  // namespace

absl::StatusOr<LineReader> LineReader::Open(const std::string& path, size_t max_line_bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> source, ByteSource::Open(path));
  return LineReader(path == "-" ? "standard input" : path, max_line_bytes, std::move(source));
}

absl::StatusOr<bool> LineReader::Next(std::string* line) {
  size_t searched = begin_;
  while (true) {
    const size_t found = buffer_.find('\n', searched);
    const bool last = found == std::string::npos && ended_;
    if (last && begin_ == buffer_.size()) return false;
    if (found != std::string::npos || last) {
      line->assign(buffer_, begin_, last ? std::string::npos : found - begin_);
      begin_ = last ? buffer_.size() : found + 1;
      ++line_;
      if (!line->empty() && line->back() == '\r') line->pop_back();
      return true;
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    searched = buffer_.size();
    if (buffer_.size() > max_line_bytes_) {
      return Error(ExitCode::kData, "read ", path_, ":", line_ + 1, ": the line has more than ", max_line_bytes_,
                   " bytes; every sample is one line of JSON");
    }
    buffer_.resize(searched + kReadBytes);
    ASSIGN_OR_RETURN(const size_t got, source_->Read(buffer_.data() + searched, kReadBytes));
    buffer_.resize(searched + got);
    ended_ = got == 0;
  }
}

}  // namespace trireme
