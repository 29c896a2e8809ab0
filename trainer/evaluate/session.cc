#include "trainer/evaluate/session.h"

#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>

#include "configs/config_loader.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/log.h"
#include "models/engine/job.h"
#include "models/source/model_config.h"
#include "models/spec/parameters.h"
#include "models/weights/adapter_source.h"
#include "models/weights/checkpoint_manifest.h"
#include "parallel/comm/agreement.h"

namespace trireme {
namespace {

constexpr int64_t kDefaultSequenceLength = 1024;

// What can be done before the ranks depend on each other.
struct Plan {
  ModelSource source;
  Recipe recipe;
  Corpora corpora;
  absl::StatusOr<ModelText> text = absl::UnknownError("");
};

absl::StatusOr<ModelText> OpenText(const ModelSource& source) {
  const std::string& own = source.text.chat_template;
  for (const std::string& folder : source.tokenizer_folders) {
    if (!FindTokenizer(folder).empty()) return OpenModelText(folder, own, TemplateDate::kToday);
  }
  if (source.tokenizer_gguf != nullptr && source.tokenizer_gguf->Find("tokenizer.ggml.model") != nullptr)
    return OpenModelText(source.tokenizer_gguf->path(), own, TemplateDate::kToday);
  const std::string sought = source.tokenizer_folders.empty()
                                 ? ""
                                 : absl::StrCat(" (looked for in ", absl::StrJoin(source.tokenizer_folders, ", "),
                                                "; a relative path counts from the working directory)");
  return Error(ExitCode::kData, source.description, ": brings neither tokenizer.json nor tokenizer.model", sought,
               ", so text means nothing to it; give and print token ids (--prompt-ids, --print-ids)");
}

// A model in use trains nothing; a recipe wants to know all the same.
void FillTraining(int world, RunConfig* config) {
  const ParallelConfig& p = config->parallel();
  const int64_t others = std::max<int64_t>(1, int64_t{p.tensor()} * p.pipeline() * p.context());
  const int64_t data_ranks = std::max<int64_t>(1, world / others), microbatches = 2 * std::max(1, p.pipeline());
  config->set_global_batch_size(static_cast<int32_t>(config->micro_batch_size() * data_ranks * microbatches));
  config->mutable_optimizer()->mutable_sgd();
  config->mutable_train_for()->set_steps(1);
  if (config->data().has_sequence_length()) return;
  // The ranks that share a sequence take equal parts.
  const int64_t part = std::max<int64_t>(1, int64_t{2} * p.context() * p.tensor());
  const int64_t wished = std::min<int64_t>(config->model().max_position_embeddings(), kDefaultSequenceLength);
  config->mutable_data()->set_sequence_length(static_cast<int32_t>(std::max(part, wished / part * part)));
}

absl::StatusOr<Plan> MakePlan(const SessionOptions& options, const Extensions& extensions, const Process& process) {
  Plan plan;
  ASSIGN_OR_RETURN(RunConfig config, LoadConfig({}, options.overrides));
  if (config.has_model() || config.has_data())
    return Error(ExitCode::kConfig,
                 "--set: model and data are SOURCE's and --data's; parallel, precision, kernels and "
                 "launch can be set");
  ASSIGN_OR_RETURN(plan.source, OpenModelSource(options.source, extensions.families, nullptr));
  if (!options.adapter.empty()) {
    ASSIGN_OR_RETURN(plan.source.adapter, OpenAdapter(options.adapter));
    RETURN_IF_ERROR(UseRunText(plan.source.adapter->text, &plan.source));
  }
  plan.text = OpenText(plan.source);
  *config.mutable_model() = plan.source.model;
  config.mutable_model()->clear_from();
  config.mutable_model()->clear_config();
  if (plan.source.adapter != nullptr) {
    ASSIGN_OR_RETURN(const DecoderSpec plain, SpecifyModel(config.model(), extensions.families));
    ASSIGN_OR_RETURN(const DecoderSpec adapted, Adapted(*plan.source.adapter, plain));
    *config.mutable_adapter() = ExactConfig(plan.source.adapter->config, *adapted.adapter);
    config.mutable_adapter()->clear_from();
  }
  *config.mutable_data() = options.data;
  if (!options.data.has_document_mask()) config.mutable_data()->set_document_mask(plan.source.document_mask);
  config.set_micro_batch_size(options.micro_batch_size);
  FillTraining(process.size(), &config);
  if (config.data().has_conversations()) {
    RETURN_IF_ERROR(plan.text.status());
    ConversationData* conversations = config.mutable_data()->mutable_conversations();
    conversations->set_tokenizer(plan.text->origin);
    if (conversations->chat_template().empty() && !plan.source.text.chat_template.empty())
      conversations->set_chat_template(plan.source.text.chat_template);
  }
  if (config.data().source_size() > 0 || config.data().has_conversations()) {
    ASSIGN_OR_RETURN(plan.corpora, OpenCorpora(config));
  }
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  ASSIGN_OR_RETURN(plan.recipe, MakeRecipe(config, process.size(), extensions.families, attention, plan.corpora.facts));
  return plan;
}

// Collective. What each rank has read and been told for itself is the same on all.
absl::Status CompareRanks(ProcessGroup& world, const SessionOptions& options, const Plan& plan, const Process& process,
                          at::Device device) {
  if (world.size() == 1) return absl::OkStatus();
  std::vector<SharedFact> facts = ProgramFacts(device);
  facts.insert(facts.end(), options.asked.begin(), options.asked.end());
  facts.push_back({"--adapter", options.adapter.empty() ? "none" : "given"});
  RETURN_IF_ERROR(CompareFacts(world, facts));
  RETURN_IF_ERROR(CompareConfigs(world, plan.recipe.config));
  std::vector<std::pair<std::string, Digest>> contents = plan.corpora.contents;
  // SOURCE and the adapter may have other names on another machine, so their contents are compared.
  const auto add = [&](const char* name, const std::string& path, const auto& read) {
    contents.emplace_back(name, DigestOrError(DigestOncePerMachine(world, process.host(), path, read)));
  };
  add("SOURCE", options.source, [&]() -> absl::StatusOr<Digest> {
    ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointOf(options.source));
    return checkpoint.empty() ? IdentifyModel(options.source) : HashFile(checkpoint + "/manifest.pb");
  });
  if (!options.adapter.empty()) add("--adapter", options.adapter, [&] { return IdentifyAdapter(options.adapter); });
  return CompareFacts(world, ContentFacts(contents));
}

absl::Status LoadWeights(const ModelSource& source, const DecoderSpec& spec, Mesh& mesh, Engine& model) {
  const auto of_model = [](const ParameterBuffer& buffer) { return !buffer.specs()[0].added; };
  RETURN_IF_ERROR(FillWeights(source.weights, mesh, model.buffers(), of_model));
  if (source.adapter == nullptr) return absl::OkStatus();
  return LoadAdapter(*source.adapter, spec, model.buffers(), [&] { mesh.log().Beat("loading the adapter"); });
}

absl::Status RunOn(const Plan& plan, const Extensions& extensions, const Process& process, Mesh& mesh,
                   const std::function<absl::Status(Session&)>& run) {
  absl::StatusOr<std::unique_ptr<Engine>> model = Engine::Create(plan.recipe.engine, mesh, extensions);
  RETURN_IF_ERROR(Agree(mesh.control(), model.status()));
  const double start = MonotonicSeconds();
  RETURN_IF_ERROR(Agree(mesh.control(), LoadWeights(plan.source, plan.recipe.engine.model, mesh, **model)));
  for (ParameterBuffer* buffer : (*model)->buffers()) buffer->Publish(/*converted=*/false);
  Info(plan.source.description,
       plan.source.adapter != nullptr ? absl::StrCat(" with ", plan.source.adapter->description) : "", ": ",
       HumanCount(static_cast<double>(NumParameters(plan.recipe.engine.model))), " parameters on ",
       plan.recipe.engine.mesh.ToString(), ", loaded in ", HumanSeconds(MonotonicSeconds() - start));
  Session session{process, plan.source, plan.recipe, plan.corpora, mesh, **model, plan.text};
  return run(session);
}

}  // namespace

absl::Status WithSession(const SessionOptions& options, const Extensions& extensions,
                         const std::function<absl::Status(Session&)>& run) {
  return WithSessions({options}, extensions, run);
}

absl::Status WithSessions(const std::vector<SessionOptions>& options, const Extensions& extensions,
                          const std::function<absl::Status(Session&)>& run) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Job> job,
                   Job::Start(options.front().expected_ranks, Process::Signals::kDefault));
  for (const SessionOptions& one : options) {
    Plan plan;
    JobSteps steps;
    steps.plan = [&](const Process& process) -> absl::StatusOr<JobPlan> {
      ASSIGN_OR_RETURN(plan, MakePlan(one, extensions, process));
      return JobPlan{plan.recipe.engine.mesh, plan.recipe.config.launch(), plan.recipe.config.kernels()};
    };
    steps.compare = [&](ProcessGroup& world, at::Device device) {
      return CompareRanks(world, one, plan, job->process(), device);
    };
    steps.run = [&](Mesh& mesh) { return RunOn(plan, extensions, job->process(), mesh, run); };
    RETURN_IF_ERROR(job->Run(steps));
  }
  return absl::OkStatus();
}

}  // namespace trireme
