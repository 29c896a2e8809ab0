#include "parallel/pipeline/svg.h"

#include <absl/strings/str_format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

namespace trireme {
namespace {

// Pixels.
constexpr double kLeft = 64, kTop = 34, kRight = 24, kRowHeight = 28, kRowGap = 6;
constexpr double kLegendHeight = 74;
constexpr double kMinWidth = 480, kMaxWidth = 8000, kShortestAction = 22, kLetterWidth = 7, kTickDistance = 70;
constexpr double kDarkest = 0.55;     // of full brightness, for the last of a rank's stages
constexpr double kWhiteLabels = 0.7;  // on what is darker than this

struct Style {
  ActionKind kind;
  const char* name;
  const char* meaning;
  int red, green, blue;
};
constexpr Style kStyles[] = {
    {ActionKind::kForward, "F", "forward", 147, 190, 240},
    {ActionKind::kBackward, "B", "backward", 247, 190, 120},
    {ActionKind::kInputGradient, "I", "input gradient", 128, 214, 204},
    {ActionKind::kWeightGradient, "W", "weight gradient", 168, 216, 128},
};

const Style& StyleOf(ActionKind kind) {
  const auto* style =
      std::find_if(std::begin(kStyles), std::end(kStyles), [&](const Style& s) { return s.kind == kind; });
  TRIREME_CHECK(style != std::end(kStyles), "an action that computes nothing in a timeline");
  return *style;
}

std::string Colour(const Style& style, double brightness) {
  const auto scaled = [&](int channel) { return static_cast<int>(std::lround(channel * brightness)); };
  return absl::StrFormat("#%02x%02x%02x", scaled(style.red), scaled(style.green), scaled(style.blue));
}

// How bright each stage is drawn: 1 for a rank's first.
std::map<int, double> Brightness(const Timeline& timeline) {
  std::vector<std::set<int>> stages(timeline.num_ranks);
  for (const TimedAction& timed : timeline.actions) stages[timed.rank].insert(timed.action.stage);
  std::map<int, double> brightness;
  for (const std::set<int>& on_rank : stages) {
    const double steps = std::max(1.0, static_cast<double>(on_rank.size()) - 1);
    double i = 0;
    for (int stage : on_rank) brightness[stage] = 1 - (1 - kDarkest) * i++ / steps;
  }
  return brightness;
}

double PixelsPerSecond(const Timeline& timeline) {
  if (timeline.total <= 0) return 1;
  double shortest = timeline.total;
  for (const TimedAction& timed : timeline.actions) {
    if (timed.end > timed.begin) shortest = std::min(shortest, timed.end - timed.begin);
  }
  return std::clamp(timeline.total * kShortestAction / shortest, kMinWidth, kMaxWidth) / timeline.total;
}

// A round distance between ticks, 1, 2 or 5 times a power of ten, that keeps them kTickDistance apart.
double TickSeconds(double pixels_per_second) {
  const double least = kTickDistance / pixels_per_second;
  const double power = std::pow(10.0, std::floor(std::log10(least)));
  for (double step : {1.0, 2.0, 5.0}) {
    if (step * power >= least) return step * power;
  }
  return 10 * power;
}

void DrawRows(const Timeline& timeline, double pixels_per_second, std::string& svg) {
  const std::map<int, double> brightness = Brightness(timeline);
  const auto top_of = [](int rank) { return kTop + rank * (kRowHeight + kRowGap); };
  for (int rank = 0; rank < timeline.num_ranks; ++rank) {
    absl::StrAppendFormat(&svg, "<text x=\"8\" y=\"%.1f\">rank %d</text>\n", top_of(rank) + kRowHeight * 0.65, rank);
  }
  for (const TimedAction& timed : timeline.actions) {
    const Action& action = timed.action;
    const Style& style = StyleOf(action.kind);
    const double x = kLeft + timed.begin * pixels_per_second, width = (timed.end - timed.begin) * pixels_per_second;
    const double y = top_of(timed.rank);
    absl::StrAppendFormat(
        &svg,
        "<rect class=\"%s\" data-rank=\"%d\" data-stage=\"%d\" data-microbatch=\"%d\" x=\"%.3f\" "
        "y=\"%.1f\" width=\"%.3f\" height=\"%.1f\" fill=\"%s\"><title>%s: %.6g s to %.6g s</title></rect>\n",
        style.name, timed.rank, action.stage, action.microbatch, x, y, width, kRowHeight,
        Colour(style, brightness.at(action.stage)), ToString(action), timed.begin, timed.end);
    const std::string label = absl::StrCat(action.microbatch);
    if (width < kLetterWidth * (static_cast<double>(label.size()) + 1)) continue;
    absl::StrAppendFormat(&svg, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s</text>\n", x + width / 2,
                          y + kRowHeight * 0.65, brightness.at(action.stage) < kWhiteLabels ? "#fff" : "#000", label);
  }
}

void DrawAxisAndLegend(const Timeline& timeline, double pixels_per_second, std::string& svg) {
  const double y = kTop + timeline.num_ranks * (kRowHeight + kRowGap);
  absl::StrAppendFormat(&svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", kLeft, y,
                        kLeft + timeline.total * pixels_per_second, y);
  const double step = TickSeconds(pixels_per_second);
  for (int tick = 0; tick * step <= timeline.total; ++tick) {
    const double x = kLeft + tick * step * pixels_per_second;
    absl::StrAppendFormat(&svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x, y, x, y + 5);
    absl::StrAppendFormat(&svg, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\">%.6g s</text>\n", x, y + 18, tick * step);
  }
  double x = kLeft;
  for (const Style& style : kStyles) {
    const bool used = std::any_of(timeline.actions.begin(), timeline.actions.end(),
                                  [&](const TimedAction& timed) { return timed.action.kind == style.kind; });
    if (!used) continue;
    absl::StrAppendFormat(&svg,
                          "<rect class=\"legend\" x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"14\" fill=\"%s\"/>\n", x,
                          y + 36, Colour(style, 1));
    const std::string text = absl::StrCat(style.name, ", ", style.meaning);
    absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x + 20, y + 47, text);
    x += 36 + kLetterWidth * static_cast<double>(text.size());
  }
  if (timeline.num_stages > timeline.num_ranks) {
    absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%.1f\">darker: a rank's later stages</text>\n", kLeft, y + 67);
  }
}

}  // namespace

std::string DrawSvg(const Timeline& timeline) {
  const double scale = PixelsPerSecond(timeline);
  const double width = kLeft + std::max(kMinWidth, timeline.total * scale) + kRight;
  const double height = kTop + timeline.num_ranks * (kRowHeight + kRowGap) + kLegendHeight;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<style>.label { text-anchor: middle } line { stroke: #444 } rect { stroke: #fff; "
      "stroke-width: 0.7 }</style>\n<rect class=\"background\" width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
      width, height);
  absl::StrAppendFormat(&svg, "<text x=\"8\" y=\"20\">total %.6g s, bubble %.1f %%</text>\n", timeline.total,
                        100 * timeline.bubble());
  DrawRows(timeline, scale, svg);
  DrawAxisAndLegend(timeline, scale, svg);
  svg += "</svg>\n";
  return svg;
}

}  // namespace trireme
