"""Checks that nothing from outside can end as a defect of ours: the product's sources use no call that throws, or is undefined, for what a file may hold.

    foreign_input_test.py ROOT          reads every source file of the product below ROOT; prints each offending line and exits 1 if there is one
    foreign_input_test.py --self-test   runs the same rules on made-up lines, some of them wrong

What to use instead: launch/base/json.h for JSON, the overloads with std::error_code and launch/base/folder.h for files, absl::SimpleAtoi for numbers, absl::Status for what
is wrong with a file, launch/base/exception.h in threads.
"""

import pathlib
import re
import sys

FOLDERS = ("launch", "configs", "kernels", "data", "models", "parallel", "serving", "trainer")
SUFFIXES = {".h", ".cc"}

# Readers of what anyone may have written: here not even TRIREME_CHECK may stand. By name, wherever the file lies.
READERS = {
    "bpe_added_tokens.cc", "bpe_decoder.cc", "bpe_file.cc", "byte_source.cc", "chat_spans.cc", "chat_template.cc", "conversation.cc", "line_reader.cc",
    "manifest.cc", "masked_tokens.cc", "normalizer.cc", "pretokenizer.cc", "pretokenizer_metaspace.cc", "pretokenizer_patterns.cc", "pretokenizer_regex.cc",
    "pretokenizer_regex_translate.cc", "sample_tokenizer.cc", "sentencepiece_file.cc", "text_reader.cc", "tokenizer.cc", "lexer.cc", "parser.cc",
    "parser_expressions.cc", "evaluator.cc", "expressions.cc", "filters.cc", "filters_sequence.cc", "bitsandbytes.cc", "gguf_config.cc", "gguf_tokenizer_json.cc",
    "hf_config.cc", "hf_config_gpt.cc", "hf_config_rope.cc", "hf_directory.cc", "json_file.cc", "peft.cc", "json.cc", "choices.cc", "hang_report.cc", "metrics.cc",
    "model_text.cc", "prompt.cc", "text_parser.cc", "merge.cc", "config_loader.cc", "csv.cc",
}

JSON = "JSON from outside may lack the key or have another type; use the accessors of launch/base/json.h"
LINE_RULES = [
    (re.compile(r'(?<!saved_data)(\.|->)(value|at)\(\s*"'), JSON),
    (re.compile(r"(\.|->)\s*(template\s+)?(get|get_ref)<|(\.|->)get_to\("), JSON),
    (re.compile(r"\b(json|Json|J|nlohmann::\w+)::parse\("), "throws on damaged text; use ParseJson of launch/base/json.h"),
    (re.compile(r"\.dump\("), "throws on what is not UTF-8; use DumpJson of launch/base/json.h"),
    (re.compile(r'[\w\])]\["\w[^"]*"\](?!(\[[^\]]*\])*\s*(=(?!=)|\.push_back\())'), "reading a missing key this way is undefined; use JsonMember of launch/base/json.h"),
    (re.compile(r"\bstd::sto(i|l|ll|ul|ull|f|d|ld)\("), "throws on what is no number; use absl::SimpleAtoi and its like"),
    (re.compile(r"for \([^;]*[^:]:[^:;].*directory_iterator"), "throws when the folder cannot be read to its end; use ListFolder of launch/base/folder.h"),
    (re.compile(r"\b(entry|it)(\.|->)(exists|is_directory|is_regular_file|is_symlink|file_size|status)\(\s*\)"), "throws; give it a std::error_code"),
    (re.compile(r"\bstd::j?thread\b(?!::hardware_concurrency)(?=[^&]*[({;])"), "what is thrown in a thread ends the process; catch it (launch/base/exception.h) and list the file here"),
]
FILESYSTEM = re.compile(
    r"\b(?:fs|filesystem)::(absolute|canonical|copy|copy_file|create_director(?:y|ies)|current_path|equivalent|exists|file_size|is_directory|is_empty|is_regular_file"
    r"|last_write_time|read_symlink|relative|remove|remove_all|rename|resize_file|space|status|symlink_status|temp_directory_path|weakly_canonical"
    r"|(?:recursive_)?directory_iterator(?:\s+\w+)?)\("
)
ERROR_CODE = re.compile(r"\b(error|ignored|unreadable|code)\)$")
CHECK = re.compile(r"\bTRIREME_CHECK\(")
COMMENT = re.compile(r"//.*")

# (file name, part of the line): why it may stand.
ALLOWED = {
    ("json.cc", "J::parse("): "inside try",
    ("json.h", ".dump(indent"): "with the handler that replaces",
    ("bpe_trainer.cc", "root.dump(1)"): "tokens spelled in UTF-8 by ourselves",
    ("bpe_trainer.cc", "vocab.get_ref<"): "an object that this function made",
    ("gguf_tokenizer_json.cc", "result.ids.get_ref<"): "an object that this function made",
    ("gguf_tokenizer_json.cc", "root.dump()"): "inside try; not being UTF-8 is the file's fault",
    ("chat_template.cc", 'templates["'): "a std::map",
    ("conversation.cc", 'wrapped["tools"]'): "an object that this function made",
    ("conversation.cc", 'AddMessages(object["'): "not const, and FormOf() has seen the key",
    ("conversation.cc", 'AddShareGpt(object["'): "not const, and FormOf() has seen the key",
    ("bench.cc", 'line["model_flops_utilization"] ='): "an assignment",
    ("thread_pool.cc", "std::thread"): "tasks are caught",
    ("loader.cc", "std::thread thread_"): "its body is caught",
    ("start_threads.h", "std::thread"): "callers catch: bpe_word_counter.cc, conversations.cc, tokenize_pipeline.cc",
    ("bpe_word_counter.cc", "StartThreads"): "its body is caught",
    ("conversations.cc", "StartThreads"): "its body is caught",
    ("tokenize_pipeline.h", "threads_"): "their body is caught",
    ("nccl_group.cc", "watcher_"): "ends the process with its code",
    ("watchdog.cc", "FailOnException"): "ends the process with its code",
    ("watchdog.h", "watcher_"): "ends the process with its code",
}


def arguments_at(code, start):
    """The text from after the parenthesis at `start` to its partner, with it."""
    depth = 0
    for i in range(start, min(len(code), start + 2000)):
        depth += (code[i] == "(") - (code[i] == ")")
        if depth == 0:
            return code[start + 1 : i + 1]
    return code[start + 1 :]


def problems_of(path, text):
    """What is wrong in one file, as lines for a person."""
    name = path.rsplit("/", 1)[-1]
    code = COMMENT.sub("", text)
    lines = code.split("\n")
    found = []

    def add(number, why):
        line = lines[number].strip()
        if not any(file == name and part in line for file, part in ALLOWED):
            found.append(f"{path}:{number + 1}: {line}\n    {why}")

    for number, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            continue
        for pattern, why in LINE_RULES:
            if pattern.search(line):
                add(number, why)
        if name in READERS and CHECK.search(line):
            add(number, "this file reads what anyone may have written: what is wrong with it is an absl::Status")
    for match in FILESYSTEM.finditer(code):
        arguments = arguments_at(code, match.end() - 1)
        # Without arguments an iterator's end; of a status, which is no path.
        if arguments == ")" or re.match(r"(fs::)?(symlink_)?status(\(|\)$)", arguments) or ERROR_CODE.search(arguments):
            continue
        add(code.count("\n", 0, match.start()), "this overload throws; give it a std::error_code")
    return found


def check_tree(root):
    problems, num_files, seen = [], 0, set()
    for folder in FOLDERS:
        for file in sorted(p for p in (root / folder).rglob("*") if p.suffix in SUFFIXES):
            num_files += 1
            seen.add(file.name)
            problems += problems_of(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"))
    for name in sorted((READERS | {file for file, _ in ALLOWED}) - seen):
        problems.append(f"{name}: listed in this test but not among the sources; has it been renamed?")
    print("\n".join(problems) or f"{num_files} files take nothing from outside for granted")
    return 1 if problems else 0


def self_test():
    right = [
        'const Json& type = JsonMember(processor, "type");',
        'root["model"]["vocab"] = std::move(vocabulary);',
        'variables["messages"].push_back(message);',
        "if (fs::exists(path, error)) return path;",
        "if (!fs::exists(fs::symlink_status(path, error))) return absl::OkStatus();",
        "for (; !error && it != fs::directory_iterator(); it.increment(error)) {}",
        "const unsigned count = std::thread::hardware_concurrency();",
        "for (std::thread& thread : threads) thread.join();",
        'x = context->saved_data.at("sizes").toIntVector();',
        "// json.at(\"rank\") throws",
        "const auto& value = std::get<int>(variant);",
        'absl::StrCat(name, "[", i, "]")',
        "fs::create_directories(\n    path, error);",
    ]
    wrong = [
        'const std::string type = processor.value("type", "");',
        'json.at("rank").get_to(report.rank);',
        "const auto id = number.get<int64_t>();",
        "const auto& text = merge.get_ref<const std::string&>();",
        "(*pattern)[name] = number.template get<T>();",
        "const Json json = Json::parse(text, nullptr, false);",
        'for (const Json& piece : processor["single"]) {}',
        'if (step["type"] == "Sequence") return;',
        "const std::string text = value.dump();",
        "const int place = std::stoi(places[rank]);",
        "if (fs::exists(folder)) renamed = RemoveAll(folder);",
        "std::filesystem::remove(old);",
        "fs::rename(\n    from,\n    to);",
        "for (const auto& entry : fs::directory_iterator(root, error)) {}",
        "if (entry.is_directory()) continue;",
        "std::thread worker([] { Work(); });",
    ]
    misses = [f"refused but right: {line}" for line in right if problems_of("data/a.cc", line)]
    misses += [f"passed but wrong: {line}" for line in wrong if not problems_of("data/a.cc", line)]
    check = "TRIREME_CHECK(result > 0);"
    if problems_of("data/a.cc", check) or not problems_of("data/text/text_reader.cc", check):
        misses.append("TRIREME_CHECK is for files that are no readers, and only those")
    if problems_of("launch/base/json.cc", "parsed = J::parse(text);") or not problems_of("launch/other.cc", "parsed = J::parse(text);"):
        misses.append("the allow list holds for its own file")
    print("\n".join(misses) or f"{len(right)} right lines pass, {len(wrong)} wrong ones are refused")
    return 1 if misses else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(self_test() if sys.argv[1] == "--self-test" else check_tree(pathlib.Path(sys.argv[1])))
