#include "data/text/text_reader.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "data/text/byte_source.h"
#include "launch/base/json.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = 1 << 18;
constexpr size_t kMaxDocumentBytes = size_t{1} << 31;

absl::string_view WithoutCompression(absl::string_view path) {
  if (!absl::ConsumeSuffix(&path, ".gz")) absl::ConsumeSuffix(&path, ".zst");
  return path;
}

bool IsJsonLines(absl::string_view path, TextFormat format) {
  if (format != TextFormat::kByName) return format == TextFormat::kJsonLines;
  const absl::string_view name = WithoutCompression(path);
  return absl::EndsWith(name, ".jsonl") || absl::EndsWith(name, ".ndjson") || absl::EndsWith(name, ".json");
}

// Binary containers that would silently be taken for text.
absl::Status CheckReadable(absl::string_view path) {
  for (absl::string_view suffix :
       {".parquet", ".arrow", ".tar", ".tgz", ".zip", ".bz2", ".xz", ".7z", ".bin", ".idx"}) {
    if (absl::EndsWith(WithoutCompression(path), suffix)) {
      return Error(ExitCode::kData, "read ", path, ": ", suffix,
                   " files are not text; convert it to JSON lines or plain text (.gz and .zst are read as they are)");
    }
  }
  return absl::OkStatus();
}

absl::Status FolderError(const std::string& path, const std::error_code& error) {
  return Error(ExitCode::kData, "list folder ", path, ": ", error.message());
}

absl::Status AppendFolder(const std::string& folder, std::vector<std::string>* files) {
  std::error_code error;
  std::vector<std::string> found;
  fs::recursive_directory_iterator it(folder, error);
  std::string last = folder;
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    last = it->path().string();
    if (absl::StartsWith(it->path().filename().string(), ".")) {
      it.disable_recursion_pending();
      continue;
    }
    std::error_code unreadable;
    const fs::file_status status = it->status(unreadable);
    if (unreadable)
      return Error(ExitCode::kData, "read ", last, ": ", unreadable.message(),
                   it->is_symlink(error) ? " (it is a link); remove it or mend where it leads" : "");
    if (fs::is_regular_file(status)) found.push_back(last);
    if (fs::is_directory(status) && it->is_symlink(error))
      Warning("read ", last, ": a link to a folder, which is not followed; name the folder itself");
  }
  if (error) return FolderError(last, error);
  if (found.empty()) return Error(ExitCode::kData, "read ", folder, ": the folder holds no files");
  std::sort(found.begin(), found.end());
  files->insert(files->end(), found.begin(), found.end());
  return absl::OkStatus();
}

class FileSequenceReader : public TextReader {
 public:
  FileSequenceReader(std::vector<std::string> files, int64_t bytes_total, TextReaderOptions options)
      : files_(std::move(files)), bytes_total_(bytes_total), options_(std::move(options)) {}

  absl::StatusOr<bool> Next(std::string* document) override {
    while (true) {
      if (source_ == nullptr) {
        if (next_file_ == files_.size()) return false;
        RETURN_IF_ERROR(OpenNextFile());
      }
      ASSIGN_OR_RETURN(const bool found,
                       json_lines_ ? NextJsonLine(document) : NextPiece(options_.delimiter, document));
      if (found && !document->empty()) return true;
      if (!found) CloseFile();
    }
  }

  int64_t bytes_done() const override { return bytes_of_closed_files_ + (source_ ? source_->bytes_read() : 0); }
  int64_t bytes_total() const override { return bytes_total_; }

 private:
  absl::Status OpenNextFile() {
    const std::string& path = files_[next_file_++];
    ASSIGN_OR_RETURN(source_, ByteSource::Open(path));
    name_ = path == "-" ? "standard input" : path;
    json_lines_ = IsJsonLines(path, options_.format);
    line_ = 0;
    buffer_.clear();
    begin_ = 0;
    file_ended_ = false;
    return absl::OkStatus();
  }

  void CloseFile() {
    bytes_of_closed_files_ += source_->bytes_read();
    source_ = nullptr;
  }

  // The next part up to `delimiter` (empty: all the rest), which is not part of it; false when the file is used up.
  absl::StatusOr<bool> NextPiece(const std::string& delimiter, std::string* piece) {
    size_t searched = begin_;
    while (true) {
      if (!delimiter.empty()) {
        const size_t found = buffer_.find(delimiter, searched);
        if (found != std::string::npos) {
          piece->assign(buffer_, begin_, found - begin_);
          begin_ = found + delimiter.size();
          return true;
        }
      }
      if (file_ended_) {
        if (begin_ == buffer_.size()) return false;
        piece->assign(buffer_, begin_, std::string::npos);
        begin_ = buffer_.size();
        return true;
      }
      buffer_.erase(0, begin_);
      begin_ = 0;
      // A delimiter may begin in the last bytes already there.
      searched = buffer_.size() - std::min(buffer_.size(), delimiter.size() - 1);
      RETURN_IF_ERROR(ReadChunk());
    }
  }

  absl::Status ReadChunk() {
    const size_t old_size = buffer_.size();
    if (old_size > kMaxDocumentBytes) {
      return Error(ExitCode::kData, "read ", name_, ": a document",
                   json_lines_ ? absl::StrCat(" (line ", line_ + 1, ")") : "", " has more than ", kMaxDocumentBytes,
                   " bytes; cut it into documents with --delimiter");
    }
    buffer_.resize(old_size + kChunkBytes);
    ASSIGN_OR_RETURN(const size_t got, source_->Read(buffer_.data() + old_size, kChunkBytes));
    buffer_.resize(old_size + got);
    file_ended_ = got == 0;
    return absl::OkStatus();
  }

  absl::StatusOr<bool> NextJsonLine(std::string* document) {
    while (true) {
      ASSIGN_OR_RETURN(const bool found, NextPiece("\n", &json_));
      if (!found) return false;
      ++line_;
      if (json_.find_first_not_of(" \t\r") == std::string::npos) continue;
      RETURN_IF_ERROR(ParseLine(document));
      return true;
    }
  }

  absl::Status ParseLine(std::string* document) {
    const auto fail = [this](const auto&... what) {
      return Error(ExitCode::kData, "read ", name_, ":", line_, ": ", what...);
    };
    JsonProblem problem;
    std::optional<nlohmann::json> parsed = ParseJson<nlohmann::json>(json_, {}, &problem);
    if (!parsed.has_value()) {
      if (problem.fault == JsonFault::kZeroByte) return fail("not valid JSON: it holds a zero byte");
      return fail("not valid JSON: ", problem.detail, "; every line must be one JSON object");
    }
    nlohmann::json& object = *parsed;
    if (!object.is_object()) return fail("a JSON ", object.type_name(), "; every line must be one JSON object");
    const auto field = object.find(options_.text_field);
    if (field == object.end()) {
      std::vector<std::string> names;
      for (const auto& item : object.items()) names.push_back(item.key());
      return fail("no field \"", options_.text_field, "\" (there are: ", absl::StrJoin(names, ", ").substr(0, 300),
                  "); choose one with --text-field");
    }
    auto* text = field->get_ptr<std::string*>();
    if (text == nullptr) return fail("field \"", options_.text_field, "\" is a ", field->type_name(), ", not a string");
    *document = std::move(*text);
    return absl::OkStatus();
  }

  const std::vector<std::string> files_;
  const int64_t bytes_total_;
  const TextReaderOptions options_;

  size_t next_file_ = 0;
  int64_t bytes_of_closed_files_ = 0;
  std::unique_ptr<ByteSource> source_;  // The file being read; null between files.
  std::string name_;
  bool json_lines_ = false;
  int64_t line_ = 0;  // Of the JSON line last read, from 1.
  std::string json_;
  std::string buffer_;  // Decompressed bytes; those before begin_ are used up.
  size_t begin_ = 0;
  bool file_ended_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TextReader>> TextReader::Open(std::vector<std::string> paths,
                                                             const TextReaderOptions& options) {
  std::vector<std::string> files;
  int64_t bytes_total = 0;
  bool total_known = true;
  for (const std::string& path : paths) {
    std::error_code error;
    if (path == "-") {
      files.push_back(path);
      total_known = false;
    } else if (fs::is_directory(path, error)) {
      RETURN_IF_ERROR(AppendFolder(path, &files));
    } else if (fs::exists(path, error)) {
      files.push_back(path);
    } else {
      return Error(ExitCode::kData, "read ", path, ": ", error ? error.message() : "no such file or folder");
    }
  }
  if (files.empty()) return Error(ExitCode::kData, "read text: no input files were given");
  for (const std::string& file : files) {
    if (file == "-") continue;
    if (options.format == TextFormat::kByName) RETURN_IF_ERROR(CheckReadable(file));
    std::error_code error;
    const bool regular = fs::is_regular_file(file, error);
    const uintmax_t size = regular ? fs::file_size(file, error) : 0;
    if (!regular || error) total_known = false;  // A pipe, for example.
    bytes_total += error ? 0 : static_cast<int64_t>(size);
  }
  return std::make_unique<FileSequenceReader>(std::move(files), total_known ? bytes_total : 0, options);
}

}  // namespace trireme
