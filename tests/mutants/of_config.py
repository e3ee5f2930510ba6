"""The faults of `zephyr/config.py`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/config.py",
        (
            "tests/test_config.py::test_defaults_are_the_documented_ones",
            "tests/test_config.py::test_overrides_and_variables",
            "tests/test_config.py::test_what_people_type_is_taken",
            "tests/test_config.py::test_sources_may_be_groups",
            "tests/test_config.py::test_what_is_wrong_with_a_group_is_named",
            "tests/test_config.py::test_sft_takes_no_weight_of_a_source",
            "tests/test_config.py::test_bad_values_are_named",
            "tests/test_config.py::test_bad_files_are_named",
            "tests/test_config.py::test_the_first_value_outside_a_range_is_refused",
            "tests/test_config.py::test_the_last_values_inside_their_ranges_are_taken",
            "tests/test_config.py::test_a_long_message_keeps_its_end",
            "tests/test_config.py::test_null_is_no_evaluation",
            "tests/test_config.py::test_overrides_stand_anywhere",
            "tests/test_config.py::test_a_key_with_a_dot_is_not_of_the_other_script",
            "tests/test_config.py::test_wrong_arguments_are_told_before_torch_is_imported",
            "tests/test_config.py::test_documented_types_and_defaults",
            "tests/test_security.py::test_a_variable_is_a_path",
            "tests/test_security.py::test_a_url_with_a_secret_is_refused",
            "tests/test_security.py::test_errors_tell_no_secret",
            "tests/test_security.py::test_a_yaml_bomb_is_told",
        ),
        (
            'return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"',
            'return line if len(line) <= 600 else f"{line[:590]} ..."',
        ),
        (
            'line = redact(" ".join(super().__str__().split()))',
            'line = " ".join(super().__str__().split())',
        ),
        (
            'return KNOWN_KEY.sub("[key]", USER.sub("://[user]@", text))',
            'return KNOWN_KEY.sub("[key]", text)',
        ),
        (
            'path = unquote(address.partition("/")[2])',
            'path = address.partition("/")[2]',
        ),
        (
            'MARKS = {"?": "a query", "#": "a fragment", "=": "a parameter"',
            'MARKS = {"?": "a query", "=": "a parameter"',
        ),
        (
            "if RANDOM.search(path) or NAMED.search(path) or KNOWN_KEY.search(path):",
            "if RANDOM.search(path) or KNOWN_KEY.search(path):",
        ),
        (
            "if isinstance(config, DPOConfig) and data.max_prompt_tokens >= data.max_tokens:",
            "if isinstance(config, DPOConfig) and data.max_prompt_tokens > data.max_tokens:",
        ),
        (
            "if isinstance(config, DPOConfig) and data.max_prompt_tokens >= data.max_tokens:",
            "if data.max_prompt_tokens >= data.max_tokens:",
        ),
        ("lambda v: 0 <= v < 0.5,", "lambda v: 0 <= v <= 0.5,"),
        (
            'lambda v: v > 0,\n        "beta optim.lr_peak',
            'lambda v: v >= 0,\n        "beta optim.lr_peak',
        ),
        ("beta optim.lr_peak data.train[].weight", "beta data.train[].weight"),
        ("weight published.eval_loss", "weight"),
        ("if config.published is not None and not data.eval:", "if False:"),
        ("if source.weight <= 0:", "if source.weight < 0:"),
        ("if isinstance(config, SFTConfig) and source.weight != 1:", "if False:"),
        ("not 1 <= source.limit < 2**63:", "not 0 <= source.limit < 2**63:"),
        ("limit if isinstance(limit, int) else None,", "None,"),
        ("optim.weight_decay optim.grad_clip published", "optim.weight_decay published"),
        ("lambda v: 0 <= v < 1, ", "lambda v: 0 <= v <= 1, "),
        (
            "lambda v: all(0 <= beta < 1 for beta in v)",
            "lambda v: any(0 <= beta < 1 for beta in v)",
        ),
        (
            'lambda v: v is None or 1 <= v < 2**63,\n        "data.limit',
            'lambda v: v is None or 0 <= v < 2**63,\n        "data.limit',
        ),
        ("lambda v: 0 <= v < 2**63", "lambda v: v < 2**63"),
        (
            '"run.eval_every run.save_every run.keep samples.max_new_tokens ',
            '"run.eval_every run.save_every samples.max_new_tokens ',
        ),
        (
            'lambda v: 1 <= v < 2**31,\n        "optim.epochs',
            'lambda v: 0 <= v < 2**31,\n        "optim.epochs',
        ),
        ("lambda v: 2 <= v < 2**31,", "lambda v: 1 <= v < 2**31,"),
        ("lr_peak: float = 2.0e-5", "lr_peak: float = 2.0e-4"),
        ("max_tokens: int = 2048", "max_tokens: int = 1023"),
        ("keep: int = 2", "keep: int = 1"),
        ("if value not in args or type(value) not in map(type, args):", "if value not in args:"),
        ("accepted = type(value) is hint", "accepted = isinstance(value, hint)"),
        ("isinstance(value, str) and NOT_A_NAME.search(value)", "isinstance(value, bytes)"),
        (
            "isinstance(value, float) and not math.isfinite(value)",
            "isinstance(value, float) and math.isnan(value)",
        ),
        (
            "if type(value) is int and abs(value) < 1e300:",
            "if type(value) is int:",
        ),
        (
            "        if node is None:\n            node = tree[parent] = {}",
            "        if parent not in tree:\n            node = tree[parent] = {}",
        ),
        (
            'if found and key.partition("[")[0] not in PATHS:',
            'if False and key.partition("[")[0] not in PATHS:',
        ),
        ("if name not in VARIABLES:", "if name in ():"),
        ("secret = find_secret(whole)", "secret = find_secret(text)"),
        ("if len(content) > LARGEST_YAML:", "if len(content) > 2 * LARGEST_YAML:"),
        (
            "counts[id(node)] = LARGEST_YAML + 1  # until",
            "counts[id(node)] = 1  # until",
        ),
        ("    close += [name for name in names if name.startswith(key)]\n", ""),
        (
            'meant += [other for other in keys(root, "") if other.split(".")[-1] == key]',
            'meant += [other for other in keys(root, "") if other == key]',
        ),
        (
            '"model tokenizer chat_template data.train data.eval reference.dir',
            '"model tokenizer chat_template data.train reference.dir',
        ),
        ('"HOME USER LOGNAME TMPDIR SCRATCH PSCRATCH', '"HOME USER LOGNAME TMPDIR PSCRATCH'),
        ("if any_length and isinstance(value, str):", "if False:"),
        ("if any_length and value is None:", "if False:"),
        (
            "if not isinstance(value, list) or (not any_length and len(value) != len(args)):",
            "if not isinstance(value, list):",
        ),
        (
            "spec.default is MISSING and spec.default_factory is MISSING:",
            "False:",
        ),
        ("BAD_INPUT = 2  # exit code", "BAD_INPUT = 1  # exit code"),
        (
            "split_arguments([a for a in rest if a not in OPTIONS])",
            "split_arguments(arguments)",
        ),
        ("    if is_first_of_node():", "    if True:"),
        ('if "." not in key and any(', "if any("),
        ('if not path and (not equals or "/" in key):', "if not path:"),
        ('if not path and (not equals or "/" in key):', "if not path and not equals:"),
        ("    for parent in kind.__mro__:\n", "    for parent in kind.__mro__[:1]:\n"),
        (
            'default = "required" if spec.default is MISSING else yaml_of(spec.default)',
            "default = yaml_of(spec.default)",
        ),
    ),
]
