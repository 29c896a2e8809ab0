#include "launch/base/json.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

using Json = nlohmann::json;

// One value of every type, and what a hostile file puts where something else is expected.
const std::vector<Json>& Values() {
  static const std::vector<Json> values = {
      nullptr,        true,        5, -5, uint64_t{1} << 63, 1e300, "text", Json::array(), Json::array({1, "a"}),
      Json::object(), {{"key", 1}}};
  return values;
}

TEST(Json, AccessorsAnswerForEveryType) {
  for (const Json& value : Values()) {
    SCOPED_TRACE(value.dump());
    EXPECT_EQ(JsonText(value) != nullptr, value.is_string());
    EXPECT_EQ(JsonTextOr(value, "none"), value.is_string() ? "text" : "none");
    EXPECT_EQ(JsonBool(value).has_value(), value.is_boolean());
    EXPECT_EQ(JsonNumber(value).has_value(), value.is_number());
    EXPECT_EQ(JsonList(value).size(), value.is_array() ? value.size() : 0);
    EXPECT_EQ(JsonMember(value, "key").is_null(), !value.is_object() || value.empty());
    EXPECT_TRUE(JsonMember(JsonMember(value, "none"), "deeper").is_null());
  }
}

TEST(Json, IntegersThatDoNotFitAreNone) {
  EXPECT_EQ(JsonInteger(Json(-5)), -5);
  EXPECT_EQ(JsonInteger(Json(uint64_t{INT64_MAX})), INT64_MAX);
  EXPECT_EQ(JsonInteger(Json(uint64_t{1} << 63)), std::nullopt);
  EXPECT_EQ(JsonInteger(Json(1.0)), std::nullopt);
  EXPECT_EQ(JsonNatural(Json(-1)), std::nullopt);
  EXPECT_EQ(JsonNatural(Json(uint64_t{1} << 63)), uint64_t{1} << 63);
  EXPECT_EQ(JsonNumber(Json(uint64_t{1} << 63)), 0x1p63);
  EXPECT_EQ(JsonNumber(Json(-2)), -2);
  EXPECT_EQ(JsonNumber(Json(0.5)), 0.5);
}

JsonFault FaultOf(absl::string_view text, const JsonLimits& limits) {
  JsonProblem problem;
  EXPECT_FALSE(ParseJson<Json>(text, limits, &problem).has_value()) << text;
  EXPECT_FALSE(ParseJson<nlohmann::ordered_json>(text, limits, &problem).has_value()) << text;
  return problem.fault;
}

TEST(Json, RefusesWhatReadersWouldDisagreeOn) {
  const JsonLimits strict = {.max_depth = 3, .unique_keys = true};
  for (const char* text : {"", "{", "nul", "{\"a\":1}}", "[1,]", "\"\xFF\"", "{\"a\":1} x"})
    EXPECT_EQ(FaultOf(text, {}), JsonFault::kSyntax) << text;
  EXPECT_EQ(FaultOf(absl::string_view("{}\0 x", 5), {}), JsonFault::kZeroByte);
  EXPECT_EQ(FaultOf("[[[[1]]]]", strict), JsonFault::kTooDeep);
  EXPECT_EQ(FaultOf(std::string(100000, '['), strict), JsonFault::kTooDeep);
  EXPECT_EQ(FaultOf(R"({"a":1,"b":{"c":1,"c":2}})", strict), JsonFault::kDuplicateKey);
  JsonProblem problem;
  EXPECT_FALSE(ParseJson<Json>(R"({"a":1,"b":{"c":1,"c":2}})", strict, &problem).has_value());
  EXPECT_EQ(problem.detail, "c");
  // The same key in different objects is no duplicate.
  EXPECT_TRUE(ParseJson<Json>(R"({"a":{"a":1},"b":[{"a":1},{"a":2}]})", strict, &problem).has_value());
  EXPECT_TRUE(ParseJson<Json>(R"({"a":1,"a":2})", {}, &problem).has_value());
}

TEST(Json, DumpsWhatIsNotUtf8) { EXPECT_EQ(DumpJson(Json("a\xFF")), "\"a\uFFFD\""); }

}  // namespace
}  // namespace trireme
