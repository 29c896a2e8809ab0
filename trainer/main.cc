#include "trainer/main.h"

#include <absl/strings/numbers.h>
#include <sys/resource.h>

#include <algorithm>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>

#include "configs/suggest.h"
#include "launch/base/exception.h"
#include "launch/base/log.h"
#include "launch/base/process.h"
#include "launch/base/version.h"
#include "trainer/commands/commands.h"

namespace trireme {
namespace {

// Prints what became of a command. A job that failed ends here, since its ranks may no longer meet.
int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  if (IsTold(status)) ExitNow(ExitCodeOf(status));
  if (ExitCodeOf(status) != ExitCode::kPreempted) FailProcess(status);
  Info(status.message());
  return static_cast<int>(ExitCode::kPreempted);
}

}  // namespace

CLI::Validator NumberFrom(double least, double most, const std::string& what) {
  return CLI::Validator(
      [=](std::string& text) {
        double value = 0;
        const bool fits = absl::SimpleAtod(text, &value) && value >= least && value <= most;  // NaN fits nowhere
        return fits ? std::string() : absl::StrCat("\"", text, "\" is not ", what);
      },
      "");
}

int Main(int argc, char** argv, const Extensions& extensions) {
  // Numbers have a point, whatever the locale that the program around this took.
  std::setlocale(LC_ALL, "C");
  CLI::App app("Trireme trains transformer language models. Start multi-rank jobs with mpirun.", "trireme");
  app.set_version_flag("--version", absl::StrCat("trireme ", kVersion));
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
  AddCompletionCommand(app);
  // A write beyond the limit of file sizes is an error of that write.
  std::signal(SIGXFSZ, SIG_IGN);
  // Large corpora and models have many files.
  rlimit files = {};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands({})) commands.push_back(command->get_name());
  if (argc > 1 && argv[1][0] != '-' && std::count(commands.begin(), commands.end(), argv[1]) == 0) {
    return Report(Error(ExitCode::kConfig, "no command is called \"", argv[1], "\"", Suggestion(argv[1], commands)));
  }
  // Each verb but these starts MPI.
  for (const char* alone : {"prepare", "tokenizer", "inspect", "validate", "plan", "export", "config", "completion"}) {
    if (argc < 2 || argv[1] != std::string(alone)) continue;
    if (const absl::Status status = CheckAlone(alone); !status.ok()) return Report(status);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(ExitCode::kConfig);
  } catch (...) {
    FailProcess(StatusOfException(std::current_exception(),
                                  "lower micro_batch_size, set recompute { policy: BLOCK } or use more ranks"));
  }
  std::cout.flush();
  std::fflush(stdout);
  if (result.ok() && (!std::cout || std::ferror(stdout) != 0))
    result = Error(ExitCode::kStorage, "writing to standard output failed; is its disk full?");
  return Report(result);
}

}  // namespace trireme
