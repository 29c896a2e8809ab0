#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include "configs/config_loader.h"
#include "configs/embedded_schema.h"

namespace trireme {
namespace {

std::string Explain(const std::string& path) {
  const absl::StatusOr<std::string> text = ExplainField(path);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

TEST(ExplainField, ShowsMeaningTypeAndDefault) {
  EXPECT_EQ(Explain("optimizer.adamw.beta1"),
            "optimizer.adamw.beta1: double, default 0.9\n    Decay of the first moment.\n");
  EXPECT_EQ(Explain("model.hidden_size"), "model.hidden_size: int32, no default\n    Width of the residual stream.\n");
  EXPECT_NE(Explain("kernels.attention").find("string, default \"auto\"\n"), std::string::npos);
}

TEST(ExplainField, ShowsEnumValuesWithTheirComments) {
  const std::string text = Explain("recompute.policy");
  EXPECT_NE(text.find("RecomputeConfig"), 0u);
  EXPECT_NE(text.find(", default NONE\n"), std::string::npos) << text;
  EXPECT_NE(text.find("      NONE: Keep what backward needs.\n"), std::string::npos) << text;
}

TEST(ExplainField, ShowsMembersAndChoices) {
  const std::string text = Explain("optimizer");
  EXPECT_NE(text.find("(rule): at most one of\n"), std::string::npos) << text;
  EXPECT_NE(text.find("learning_rate: double"), std::string::npos) << text;
  EXPECT_EQ(Explain("optimizer.rule").find("optimizer.rule: at most one of\n"), 0u);
  EXPECT_NE(Explain("data.source").find("data.source: DataSource, repeated\n"), std::string::npos);
}

TEST(ExplainField, EmptyPathShowsEveryFieldWithoutNumberNotes) {
  const std::string text = Explain("");
  const google::protobuf::Descriptor& root = *RunConfig::descriptor();
  for (int i = 0; i < root.field_count(); ++i)
    EXPECT_NE(("\n" + text).find("\n" + root.field(i)->name() + ": "), std::string::npos) << root.field(i)->name();
  EXPECT_EQ(text.find("Next id"), std::string::npos);
}

TEST(ExplainField, UnknownFieldsGetSuggestions) {
  const absl::StatusOr<std::string> text = ExplainField("parallel.tensr");
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(ExitCodeOf(text.status()), ExitCode::kConfig);
  EXPECT_EQ(text.status().message(), "config: unknown field \"tensr\" in parallel; did you mean \"tensor\"?");
  EXPECT_EQ(ExplainField("seed.x").status().message(), "config: seed is a uint64 and has no member \"x\"");
}

// The proto is the manual: no field or enum value of it goes unexplained.
TEST(ExplainField, EveryFieldHasAComment) {
  google::protobuf::FileDescriptorSet files;
  ASSERT_TRUE(files.ParseFromArray(kEmbeddedSchema, static_cast<int>(kEmbeddedSchemaSize)));
  google::protobuf::DescriptorPool pool;
  const google::protobuf::FileDescriptor* file = pool.BuildFile(files.file(0));
  ASSERT_NE(file, nullptr);
  for (int i = 0; i < file->message_type_count(); ++i) {
    for (int j = 0; j < file->message_type(i)->field_count(); ++j) {
      const google::protobuf::FieldDescriptor& field = *file->message_type(i)->field(j);
      google::protobuf::SourceLocation location;
      EXPECT_TRUE(field.GetSourceLocation(&location) &&
                  !(location.leading_comments + location.trailing_comments).empty())
          << field.full_name();
    }
  }
}

}  // namespace
}  // namespace trireme
