// The first byte chooses the file's name, by which the reader goes, and the delimiter.
#include <zlib.h>
#include <zstd.h>

#include "data/text/text_reader.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

constexpr const char* kNames[] = {"a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst"};
constexpr size_t kNumNames = std::size(kNames);

struct Files {
  Files() {
    for (const char* name : kNames) folder.Link(file, name);
  }
  ScratchFolder folder;
  MemoryFile file;
};

std::string Gzip(const std::string& text) {
  constexpr int kGzip = 16;
  z_stream stream = {};
  TRIREME_CHECK(deflateInit2(&stream, 6, Z_DEFLATED, kGzip + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = text.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  TRIREME_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

}  // namespace

bool FuzzOne(const std::string& input) {
  static Files files;
  if (input.empty()) return false;
  const auto choice = static_cast<unsigned char>(input[0]);
  files.file.Write(absl::string_view(input).substr(1));
  TextReaderOptions options;
  if (choice / kNumNames % 2 == 1) options.delimiter = "\n\n";
  const auto reader = TextReader::Open({files.folder / kNames[choice % kNumNames]}, options);
  if (!reader.ok()) return false;
  std::string document;
  size_t documents = 0;
  while (true) {
    const auto found = (*reader)->Next(&document);
    if (!found.ok()) return false;
    if (!*found) return documents > 0;
    ++documents;
    TRIREME_CHECK(!document.empty(), "document ", documents, " is empty");
  }
}

std::vector<std::string> FuzzSeeds() {
  const std::string text = "One document.\n\nAnother one,\nof two lines.\n\n\n\xC3\xA9";
  const std::string lines =
      "{\"text\": \"One\\u00e9\"}\n\n{\"id\": 1, \"text\": \"\"}\r\n{\"text\":\"\\ud83d\\ude00 two\"}";
  std::vector<std::string> seeds;
  for (size_t choice = 0; choice < 2 * kNumNames; ++choice) {
    const std::string& plain = choice % 2 == 0 ? text : lines;
    const size_t packing = choice % kNumNames / 2;
    seeds.push_back(static_cast<char>(choice) + (packing == 0 ? plain : packing == 1 ? Gzip(plain) : Zstd(plain)));
  }
  seeds.push_back('\2' + Gzip(text) + Gzip(text) + std::string(8, '\0'));
  seeds.push_back('\4' + Zstd(text) + Zstd(text));
  return seeds;
}

}  // namespace trireme
