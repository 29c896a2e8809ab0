// Tensors written by any number of ranks and read by any other, and folders that are not whole.
#include "models/weights/sharded_tensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "parallel/comm/mpi_group.h"
#include "tests/kernels/test_tensors.h"
#include "tests/parallel/played_group.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

class ShardedTensors : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "sharded_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(root_).ok());
    folder_ = root_ + "/weights";
    ASSERT_TRUE(MakeDirectories(folder_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(root_).ok()); }

  // A norm whose shard boundary falls anywhere, and matrices whose rows are cut in the middle.
  static std::vector<ParameterSpec> Specs() {
    std::vector<ParameterSpec> specs(4);
    const std::vector<std::pair<std::string, std::vector<int64_t>>> tensors = {
        {"norm", {600}}, {"q", {11, 70}}, {"k", {5, 70}}, {"down", {3, 1000}}};
    for (size_t i = 0; i < specs.size(); ++i) {
      specs[i].name = tensors[i].first;
      specs[i].shape = tensors[i].second;
      specs[i].fused_with_previous = tensors[i].first == "k";
    }
    return specs;
  }

  static std::vector<std::unique_ptr<ParameterBuffer>> Ranks(int ranks, at::ScalarType compute = at::kFloat) {
    std::vector<std::unique_ptr<ParameterBuffer>> buffers;
    for (int rank = 0; rank < ranks; ++rank) {
      BufferOptions options;
      options.compute = compute;
      options.master_weights = compute == at::kFloat;
      options.gather_group = options.reduce_group = std::make_shared<PlayedGroup>(rank, ranks);
      options.replicate_group = MakeSelfGroup("self");
      buffers.push_back(std::make_unique<ParameterBuffer>(Specs(), options));
    }
    return buffers;
  }

  void Write(const std::vector<std::unique_ptr<ParameterBuffer>>& ranks, const std::string& suffix = "") {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      const auto files =
          WriteParts(folder_, static_cast<int>(rank), PartsOf(*ranks[rank], ranks[rank]->own_weights(), suffix, true));
      ASSERT_TRUE(files.ok()) << files.status();
      for (const CheckpointFile& file : *files) {
        const absl::StatusOr<Digest> digest = HashFile(root_ + "/" + file.path());
        ASSERT_TRUE(digest.ok()) << file.path();
        EXPECT_EQ(*digest, file.digest());
        EXPECT_EQ(static_cast<int64_t>(fs::file_size(root_ + "/" + file.path())), file.bytes());
      }
    }
  }

  static void Initialize(const std::vector<std::unique_ptr<ParameterBuffer>>& ranks) {
    for (const auto& buffer : ranks) buffer->Initialize(21);
  }

  // Reads everything; the first error, if any.
  absl::Status Read(const std::vector<std::unique_ptr<ParameterBuffer>>& ranks, const std::string& suffix = "") {
    const auto reader = ShardedTensorReader::Open(folder_);
    RETURN_IF_ERROR(reader.status());
    for (const auto& buffer : ranks) {
      for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), suffix, /*unique=*/false))
        RETURN_IF_ERROR(reader->Read(part));
    }
    return absl::OkStatus();
  }

  static void ExpectRefused(const absl::Status& status, const std::string& why) {
    ASSERT_FALSE(status.ok()) << "accepted; expected: " << why;
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint) << status;
    EXPECT_NE(status.message().find(why), std::string::npos) << status;
  }

  TensorPart Whole(const std::string& name, std::vector<int64_t> shape, at::ScalarType dtype = at::kFloat) {
    TensorPart part;
    part.name = name;
    part.rectangle = {std::vector<int64_t>(shape.size(), 0), shape};
    part.shape = std::move(shape);
    part.values = at::zeros({part.rectangle.numel()}, at::TensorOptions().dtype(dtype));
    return part;
  }

  std::string root_, folder_;
};

TEST_F(ShardedTensors, AnyCutReadsWhatAnyOtherWrote) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int writers : {1, 2, 3, 5}) {
      ASSERT_TRUE(RemoveAll(folder_).ok());
      ASSERT_TRUE(MakeDirectories(folder_).ok());
      const auto saved = Ranks(writers, dtype);
      Initialize(saved);
      Write(saved);
      for (const int readers : {1, 2, 3, 4, 7}) {
        SCOPED_TRACE(absl::StrCat(writers, " to ", readers, ", ", DtypeName(dtype)));
        const auto loaded = Ranks(readers, dtype), expected = Ranks(readers, dtype);
        Initialize(expected);
        const absl::Status status = Read(loaded);
        ASSERT_TRUE(status.ok()) << status;
        for (int rank = 0; rank < readers; ++rank) {
          EXPECT_TRUE(loaded[rank]->own_weights().equal(expected[rank]->own_weights())) << "rank " << rank;
        }
      }
    }
  }
}

TEST_F(ShardedTensors, StateHasASuffix) {
  const auto ranks = Ranks(2);
  Initialize(ranks);
  Write(ranks, "exp_avg");
  const auto reader = ShardedTensorReader::Open(folder_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->shapes().at("q.exp_avg"), (std::vector<int64_t>{11, 70}));
  EXPECT_EQ(reader->shapes().size(), 4u);
  ExpectRefused(Read(ranks), "\"norm\" is missing");
}

TEST_F(ShardedTensors, LevelNoneSavesEachElementOnce) {
  std::vector<std::unique_ptr<ParameterBuffer>> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    BufferOptions options;
    options.shard = ShardLevel::kNone;
    options.gather_group = options.reduce_group = std::make_shared<PlayedGroup>(rank, 2);
    options.replicate_group = MakeSelfGroup("self");
    ranks.push_back(std::make_unique<ParameterBuffer>(Specs(), options));
  }
  Initialize(ranks);
  Write(ranks);
  const auto loaded = Ranks(1), expected = Ranks(1);
  Initialize(expected);
  const absl::Status status = Read(loaded);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(loaded[0]->own_weights().equal(expected[0]->own_weights()));
}

TEST_F(ShardedTensors, PlainFilesAreWhole) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto produce = [&](const SafetensorsEntry&, FileWriter& writer) {
    return writer.Append(values.data(), values.size() * sizeof(float));
  };
  ASSERT_TRUE(WriteSafetensors(folder_ + "/model.safetensors", {{"x", "F32", {2, 3}}}, {}, produce).ok());
  const auto reader = ShardedTensorReader::Open(folder_);
  ASSERT_TRUE(reader.ok());
  TensorPart part = Whole("x", {2, 3});
  part.rectangle = {{1, 1}, {1, 2}};
  part.values = at::zeros({2}, at::TensorOptions().dtype(at::kFloat));
  ASSERT_TRUE(reader->Read(part).ok());
  EXPECT_EQ(part.values[0].item<float>(), 5);
  EXPECT_EQ(part.values[1].item<float>(), 6);
}

TEST_F(ShardedTensors, AMissingShardIsNoticed) {
  for (int missing = 0; missing < 3; ++missing) {
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
    const auto ranks = Ranks(3);
    Initialize(ranks);
    Write(ranks);
    for (int piece = 0; piece < 3; ++piece)
      fs::remove(absl::StrCat(folder_, "/shard-0000", missing, "-", piece, ".safetensors"));
    const absl::Status status = Read(Ranks(1));
    EXPECT_FALSE(status.ok()) << missing;
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
  }
}

TEST_F(ShardedTensors, ADoubledShardIsNoticed) {
  const auto ranks = Ranks(2);
  Initialize(ranks);
  Write(ranks);
  fs::copy_file(folder_ + "/shard-00000-0.safetensors", folder_ + "/shard-00007-0.safetensors");
  ExpectRefused(Read(Ranks(1)), "doubled");
}

// As many elements are doubled as are missing: the count alone would not tell.
TEST_F(ShardedTensors, OneShardInAnothersPlaceIsNoticed) {
  const at::Tensor values = at::arange(10, at::TensorOptions().dtype(at::kFloat));
  const auto half = [&](int64_t begin) {
    TensorPart part = Whole("x", {10});
    part.rectangle = {{begin}, {5}};
    part.values = values.narrow(0, begin, 5);
    return part;
  };
  ASSERT_TRUE(WriteParts(folder_, 0, {half(5)}).ok());
  ASSERT_TRUE(WriteParts(folder_, 1, {half(5)}).ok());
  const auto reader = ShardedTensorReader::Open(folder_);
  ASSERT_TRUE(reader.ok());
  ExpectRefused(reader->Read(Whole("x", {10})), "doubled");
}

TEST_F(ShardedTensors, ShapesAndDtypesMustAgree) {
  const auto ranks = Ranks(2);
  Initialize(ranks);
  Write(ranks);
  const auto reader = ShardedTensorReader::Open(folder_);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(reader->Read(Whole("q", {11, 70})).ok());
  ExpectRefused(reader->Read(Whole("q", {11, 71})), "has shape [0:11, 0:70], the model needs [0:11, 0:71]");
  ExpectRefused(reader->Read(Whole("q", {10, 70})), "has shape");
  ExpectRefused(reader->Read(Whole("q", {770})), "has shape");
  ExpectRefused(reader->Read(Whole("q", {11, 70}, at::kBFloat16)), "is stored as F32, this run needs BF16");
  ExpectRefused(reader->Read(Whole("z", {11, 70})), "\"z\" is missing");
}

TEST_F(ShardedTensors, FoldersThatCannotBeRead) {
  ExpectRefused(ShardedTensorReader::Open(folder_).status(), "holds no safetensors files");
  ExpectRefused(ShardedTensorReader::Open(folder_ + "/none").status(), "holds no safetensors files");
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/shard-00000-0.safetensors", "short").ok());
  ExpectRefused(ShardedTensorReader::Open(folder_).status(), "too few");
}

TEST_F(ShardedTensors, DamagedShardingInfo) {
  const auto produce = [](const SafetensorsEntry&, FileWriter& writer) { return writer.Append("\0\0\0\0\0\0\0\0", 8); };
  for (const auto& [info, why] : std::vector<std::pair<std::string, std::string>>{
           {"{", "cannot be read"},
           {"[]", "cannot be read"},
           {R"({"x":[0,0]})", "cannot be read"},
           {R"({"x":{"saved_offsets":[-1,0]}})", "cannot be read"},
           {R"({"x":{"saved_offsets":[0.5,0]}})", "cannot be read"},
           {R"({"x":{"saved_offsets":[18446744073709551615,0]}})", "cannot be read"},
           {R"({"x":{"saved_offsets":[0]}})", "offsets of another rank"}}) {
    ASSERT_TRUE(
        WriteSafetensors(folder_ + "/a.safetensors", {{"x", "F32", {1, 2}}}, {{"DCP_SHARDING_INFO", info}}, produce)
            .ok());
    ExpectRefused(ShardedTensorReader::Open(folder_).status(), why);
  }
}

TEST_F(ShardedTensors, FilesThatDisagreeOnDimensions) {
  TensorPart vector = Whole("x", {4}), matrix = Whole("x", {2, 2});
  ASSERT_TRUE(WriteParts(folder_, 0, {vector}).ok());
  ASSERT_TRUE(WriteParts(folder_, 1, {matrix}).ok());
  ExpectRefused(ShardedTensorReader::Open(folder_).status(), "another number of dimensions");
}

}  // namespace
}  // namespace trireme
