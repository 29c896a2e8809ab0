#include "trainer/main.h"

#include <exception>
#include <new>

#include "launch/log.h"
#include "launch/process.h"
#include "trainer/commands.h"
#include "trainer/version.h"

namespace trireme {
namespace {

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  if (ExitCodeOf(status) == ExitCode::kPreempted) {
    Info(status.message());
  } else {
    WriteLog(Severity::kError, std::string(status.message()));
  }
  return static_cast<int>(ExitCodeOf(status));
}

}  // namespace

int Main(int argc, char** argv, const Extensions& extensions) {
  CLI::App app("Trireme trains transformer language models. Start multi-rank jobs with mpirun.", "trireme");
  app.set_version_flag("--version", kVersion);
  app.require_subcommand(1);
  absl::Status result = absl::OkStatus();
  AddTrainCommand(app, extensions, &result);
  AddPrepareCommand(app, &result);
  AddTokenizerCommand(app, &result);
  AddInspectCommand(app, extensions, &result);
  AddValidateCommand(app, extensions, &result);
  AddPlanCommand(app, extensions, &result);
  AddBenchCommand(app, extensions, &result);
  AddExportCommand(app, extensions, &result);
  AddGenerateCommand(app, extensions, &result);
  AddEvaluateCommand(app, extensions, &result);
  AddConfigCommand(app, &result);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(ExitCode::kConfig);
  } catch (const std::bad_alloc&) {
    FailProcess(Error(ExitCode::kOutOfMemory,
                      "out of host memory; lower micro_batch_size, set recompute { policy: BLOCK } or use more ranks"));
  } catch (const std::exception& error) {
    // libtorch reports its failures as exceptions; out of memory is the user's to mend, anything else ours.
    const std::string what = error.what();
    if (what.find("out of memory") != std::string::npos || what.find("out of host memory") != std::string::npos) {
      FailProcess(Error(ExitCode::kOutOfMemory, what.substr(0, what.find('\n')),
                        "; lower micro_batch_size, set recompute { policy: BLOCK } or use more ranks"));
    }
    FailProcess(Error(ExitCode::kInternal, "unexpected: ", what));
  }
  return Report(result);
}

}  // namespace trireme
