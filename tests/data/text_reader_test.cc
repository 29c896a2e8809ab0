#include "data/text/text_reader.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

std::string Gzip(const std::string& text) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = text.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

absl::StatusOr<std::vector<std::string>> ReadDocuments(std::vector<std::string> paths,
                                                       const TextReaderOptions& options = {}) {
  ASSIGN_OR_RETURN(auto reader, TextReader::Open(std::move(paths), options));
  std::vector<std::string> documents;
  std::string document;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&document));
    if (!more) break;
    documents.push_back(document);
  }
  EXPECT_EQ(reader->bytes_done(), reader->bytes_total());
  return documents;
}

using Texts = std::vector<std::string>;

TEST(TextReader, PlainFileIsOneDocument) {
  TempFolder folder;
  const std::string text(1000000, 'x');
  WriteText(folder / "a.txt", text + "\n\nend");
  WriteText(folder / "empty.txt", "");
  EXPECT_EQ(ReadDocuments({folder / "a.txt", folder / "empty.txt"}).value(), (Texts{text + "\n\nend"}));
}

TEST(TextReader, DelimiterIsFoundAcrossReads) {
  TempFolder folder;
  TextReaderOptions options;
  options.delimiter = "<|end|>";
  Texts expected;
  std::string text;
  for (int i = 0; i < 40; ++i) {  // Lengths around the size of one read, 256 KiB.
    expected.push_back(std::string(i == 0 ? (1 << 18) - 20 : 20000 + i, static_cast<char>('a' + i % 26)));
    text += expected.back() + "<|end|>";
  }
  WriteText(folder / "a.txt", text + "<|end|>tail<|en");
  expected.push_back("tail<|en");
  EXPECT_EQ(ReadDocuments({folder / "a.txt"}, options).value(), expected);
  for (int shift = 0; shift < 9; ++shift) {
    const std::string first((1 << 18) - shift, 'y');
    WriteText(folder / "b.txt", first + "<|end|>z");
    EXPECT_EQ(ReadDocuments({folder / "b.txt"}, options).value(), (Texts{first, "z"})) << shift;
  }
}

TEST(TextReader, JsonLines) {
  TempFolder folder;
  WriteText(folder / "a.jsonl",
            "{\"text\": \"one\\u00e9\\n\", \"id\": 1}\n\n{\"text\": \"\"}\r\n{\"text\":\"two\",\"body\":\"b\"}");
  EXPECT_EQ(ReadDocuments({folder / "a.jsonl"}).value(), (Texts{"one\xc3\xa9\n", "two"}));
  TextReaderOptions options;
  options.format = TextFormat::kPlain;
  EXPECT_EQ(ReadDocuments({folder / "a.jsonl"}, options).value().size(), 1u);
}

TEST(TextReader, JsonErrorsNameFileAndLine) {
  TempFolder folder;
  const auto error = [&](const std::string& second_line) {
    WriteText(folder / "a.jsonl", "{\"text\": \"one\"}\n" + second_line + "\n");
    return ReadDocuments({folder / "a.jsonl"}).status();
  };
  EXPECT_ERROR(error("{\"text\": "), ExitCode::kData, "a.jsonl:2: not valid JSON");
  EXPECT_ERROR(error("[1]"), ExitCode::kData, "a.jsonl:2: a JSON array");
  EXPECT_ERROR(error("{\"body\": 1}"), ExitCode::kData, "no field \"text\" (there are: body)");
  EXPECT_ERROR(error("{\"text\": null}"), ExitCode::kData, "is a null, not a string");
  EXPECT_ERROR(error("{\"text\": \"\xff\"}"), ExitCode::kData, "a.jsonl:2: not valid JSON");
  EXPECT_ERROR(error(std::string("{\"text\": \"a\"}\0 x", 16)), ExitCode::kData, "a.jsonl:2: not valid JSON");
  EXPECT_ERROR(error(std::string(100000, '[')), ExitCode::kData, "a.jsonl:2: not valid JSON");
}

TEST(TextReader, CompressedFilesReadLikePlainOnes) {
  TempFolder folder;
  std::string text;
  Texts expected;
  for (int i = 0; i < 50000; ++i) {
    expected.push_back(absl::StrCat("document ", i * 7919 % 65537));
    text += "{\"text\": \"" + expected.back() + "\"}\n";
  }
  const size_t half = text.size() / 2;
  WriteText(folder / "a.jsonl.gz", Gzip(text));
  WriteText(folder / "members.jsonl.gz", Gzip(text.substr(0, half)) + Gzip("") + Gzip(text.substr(half)));
  WriteText(folder / "padded.jsonl.gz", Gzip(text) + std::string(1000, '\0'));
  WriteText(folder / "a.jsonl.zst", Zstd(text));
  WriteText(folder / "frames.jsonl.zst", Zstd(text.substr(0, half)) + Zstd("") + Zstd(text.substr(half)));
  for (const char* name : {"a.jsonl.gz", "members.jsonl.gz", "padded.jsonl.gz", "a.jsonl.zst", "frames.jsonl.zst"}) {
    EXPECT_EQ(ReadDocuments({folder / name}).value(), expected) << name;
  }
}

TEST(TextReader, DamagedCompressedFilesAreErrors) {
  TempFolder folder;
  std::string text;
  for (int i = 0; i < 300; ++i) text += absl::StrCat("line ", i * i, "\n");
  for (const bool gzip : {true, false}) {
    const std::string path = folder / (gzip ? "a.txt.gz" : "a.txt.zst");
    const std::string whole = gzip ? Gzip(text) : Zstd(text);
    for (size_t length = 0; length < whole.size(); ++length) {
      WriteText(path, whole.substr(0, length));
      EXPECT_ERROR(ReadDocuments({path}).status(), ExitCode::kData, path);
    }
    WriteText(path, whole + "garbage");
    EXPECT_ERROR(ReadDocuments({path}).status(), ExitCode::kData, path);
    for (size_t i = 0; i < whole.size();
         ++i) {  // No crash, whatever the byte; gzip's checksum finds what its format does not.
      std::string damaged = whole;
      damaged[i] ^= 0x55;
      WriteText(path, damaged);
      const auto documents = ReadDocuments({path});
      if (documents.ok() && gzip) {
        EXPECT_EQ(*documents, Texts{text}) << i;
      }
    }
  }
}

TEST(TextReader, FoldersAreReadRecursivelyInOrder) {
  TempFolder folder;
  std::filesystem::create_directories(folder / "in/b/c");
  std::filesystem::create_directories(folder / "in/.git");
  WriteText(folder / "in/z.txt", "4");
  WriteText(folder / "in/a.txt", "1");
  WriteText(folder / "in/b/c/a.txt", "2");
  WriteText(folder / "in/b/d.jsonl", "{\"text\":\"3\"}");
  WriteText(folder / "in/.git/config", "hidden");
  WriteText(folder / "in/.hidden", "hidden");
  EXPECT_EQ(ReadDocuments({folder / "in"}).value(), (Texts{"1", "2", "3", "4"}));
}

TEST(TextReader, RefusesWhatItCannotRead) {
  TempFolder folder;
  EXPECT_ERROR(ReadDocuments({}).status(), ExitCode::kData, "no input files");
  EXPECT_ERROR(ReadDocuments({folder / "missing.txt"}).status(), ExitCode::kData, "missing.txt");
  std::filesystem::create_directories(folder / "empty");
  EXPECT_ERROR(ReadDocuments({folder / "empty"}).status(), ExitCode::kData, "holds no files");
  std::filesystem::create_symlink("nowhere", folder / "empty/link.txt");
  EXPECT_ERROR(ReadDocuments({folder / "empty"}).status(), ExitCode::kData, "empty/link.txt: No such file");
  WriteText(folder / "a.parquet", "PAR1");
  EXPECT_ERROR(ReadDocuments({folder / "a.parquet"}).status(), ExitCode::kData, ".parquet files are not text");
  WriteText(folder / "not.gz", "plain text");
  EXPECT_ERROR(ReadDocuments({folder / "not.gz"}).status(), ExitCode::kData, "is not gzip data");
}

}  // namespace
}  // namespace trireme
