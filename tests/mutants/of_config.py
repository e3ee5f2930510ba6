"""The faults of `zephyr/config.py`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/config.py",
        (
            "tests/test_config.py::test_defaults_are_the_documented_ones",
            "tests/test_config.py::test_overrides_and_variables",
            "tests/test_config.py::test_what_people_type_is_taken",
            "tests/test_config.py::test_bad_values_are_named",
            "tests/test_config.py::test_bad_files_are_named",
            "tests/test_config.py::test_the_first_value_outside_a_range_is_refused",
            "tests/test_config.py::test_the_last_values_inside_their_ranges_are_taken",
            "tests/test_config.py::test_a_long_message_keeps_its_end",
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
            'path = unquote(url.partition("://")[2].partition("/")[2])',
            'path = url.partition("://")[2].partition("/")[2]',
        ),
        (
            (
                "for mark, what in {\n"
                '            "?": "a query",\n'
                '            "#": "a fragment",\n'
                '            "=": "a parameter",\n'
                '            "@": "a user or password",\n'
                "        }.items():"
            ),
            (
                'for mark, what in {"?": "a query", "=": "a parameter", "@": "a user or '
                'password"}.items():'
            ),
        ),
        (
            "if RANDOM.search(path) or NAMED.search(path) or KNOWN_KEY.search(path):",
            "if RANDOM.search(path) or KNOWN_KEY.search(path):",
        ),
        (
            (
                "if isinstance(config, DPOConfig) and config.data.max_prompt_tokens >= "
                "config.data.max_tokens:"
            ),
            (
                "if isinstance(config, DPOConfig) and config.data.max_prompt_tokens > "
                "config.data.max_tokens:"
            ),
        ),
        (
            (
                "if isinstance(config, DPOConfig) and config.data.max_prompt_tokens >= "
                "config.data.max_tokens:"
            ),
            "if config.data.max_prompt_tokens >= config.data.max_tokens:",
        ),
        (
            '"0 <= number < 0.5": (lambda v: 0 <= v < 0.5, "label_smoothing"),',
            '"0 <= number < 0.5": (lambda v: 0 <= v <= 0.5, "label_smoothing"),',
        ),
        (
            '"a number > 0": (lambda v: v > 0, "beta optim.lr_peak"),',
            '"a number > 0": (lambda v: v >= 0, "beta optim.lr_peak"),',
        ),
        (
            '"a number > 0": (lambda v: v > 0, "beta optim.lr_peak"),',
            '"a number > 0": (lambda v: v > 0, "beta"),',
        ),
        (
            ('"a number >= 0": (lambda v: v >= 0, "optim.weight_decay optim.grad_clip"),'),
            '"a number >= 0": (lambda v: v >= 0, "optim.weight_decay"),',
        ),
        (
            '"0 <= number < 1": (lambda v: 0 <= v < 1, "optim.warmup_fraction"),',
            '"0 <= number < 1": (lambda v: 0 <= v <= 1, "optim.warmup_fraction"),',
        ),
        (
            (
                '"two of 0 <= number < 1": (lambda v: all(0 <= beta < 1 for beta in v), '
                '"optim.adam_betas"),'
            ),
            (
                '"two of 0 <= number < 1": (lambda v: any(0 <= beta < 1 for beta in v), '
                '"optim.adam_betas"),'
            ),
        ),
        (
            (
                '"null or 1 <= integer < 2**63": (lambda v: v is None or 1 <= v < 2**63, '
                '"data.limit"),'
            ),
            (
                '"null or 1 <= integer < 2**63": (lambda v: v is None or 0 <= v < 2**63, '
                '"data.limit"),'
            ),
        ),
        (
            '"0 <= integer < 2**63": (lambda v: 0 <= v < 2**63, "run.seed"),',
            '"0 <= integer < 2**63": (lambda v: v < 2**63, "run.seed"),',
        ),
        (
            '"run.eval_every run.save_every run.keep samples.max_new_tokens",',
            '"run.eval_every run.save_every samples.max_new_tokens",',
        ),
        ("lambda v: 1 <= v < 2**31,", "lambda v: 0 <= v < 2**31,"),
        ("lambda v: 1 < v < 2**31,", "lambda v: 0 < v < 2**31,"),
        ("lr_peak: float = 2.0e-5", "lr_peak: float = 2.0e-4"),
        ("max_tokens: int = 2048  # the window", "max_tokens: int = 1024  # the window"),
        ("keep: int = 2", "keep: int = 1"),
        ("if value not in args or type(value) not in map(type, args):", "if value not in args:"),
        ("type(value) is not hint", "not isinstance(value, hint)"),
        (
            (
                "if (\n"
                "        type(value) is not hint\n"
                "        or (hint is float and not math.isfinite(value))\n"
                "        or (hint is str and NO_TEXT.search(value))\n"
                "    ):"
            ),
            ("if type(value) is not hint or (hint is float and not math.isfinite(value)):"),
        ),
        (
            "or (hint is float and not math.isfinite(value))",
            "or (hint is float and math.isnan(value))",
        ),
        (
            (
                "(type(value) is int and abs(value) < 1e300)\n"
                "        or (isinstance(value, str) and EXPONENT.fullmatch(value))"
            ),
            ("type(value) is int or (isinstance(value, str) and EXPONENT.fullmatch(value))"),
        ),
        (
            "node = tree[parent] = {} if tree.get(parent) is None else tree[parent]",
            "node = tree[parent] = {} if parent not in tree else tree[parent]",
        ),
        (
            ('if key.partition("[")[0] not in PATHS and (found := VARIABLE.search(text)):'),
            (
                'if key.partition("[")[0] not in PATHS and False and (found := '
                "VARIABLE.search(text)):"
            ),
        ),
        ("if name not in VARIABLES:", "if name in ():"),
        ("if found := find_secret(whole):", "if found := find_secret(text):"),
        ("if len(content) > LARGEST_YAML:", "if len(content) > 2 * LARGEST_YAML:"),
        (
            (
                "sizes[id(node)] = (\n"
                "                LARGEST_YAML + 1\n"
                "            )  # while it is looked at: one that is met again holds "
                "itself"
            ),
            ("sizes[id(node)] = 1  # while it is looked at: one that is met again holds itself"),
        ),
        (
            (
                "close = difflib.get_close_matches(key, names, n=1, cutoff=0.5) or [\n"
                "        name for name in names if name.startswith(key)\n"
                "    ]"
            ),
            "close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)",
        ),
        (
            (
                "meant += [\n"
                "        other\n"
                "        for root in (DPOConfig, SFTConfig)\n"
                '        for other in keys(root, "")\n'
                '        if other.split(".")[-1] == key\n'
                "    ]"
            ),
            (
                "meant += [other for root in (DPOConfig, SFTConfig) for other in "
                'keys(root, "") if other == key]'
            ),
        ),
        (
            (
                '"model tokenizer chat_template data.train data.eval reference.dir '
                'hardware.deepspeed samples.prompts samples.judge "'
            ),
            (
                '"model tokenizer chat_template data.train reference.dir '
                'hardware.deepspeed samples.prompts samples.judge "'
            ),
        ),
        (
            (
                '"HOME USER LOGNAME TMPDIR SCRATCH PSCRATCH WORK WORKDIR WRKDIR PROJECT '
                'STORE DATA DATA_DIR DATASETS MODELS MODEL_DIR "'
            ),
            (
                '"HOME USER LOGNAME TMPDIR PSCRATCH WORK WORKDIR WRKDIR PROJECT STORE '
                'DATA DATA_DIR DATASETS MODELS MODEL_DIR "'
            ),
        ),
        ("if args[-1] is Ellipsis and (value is None or isinstance(value, str)):", "if False:"),
        (
            "if not isinstance(value, list) or (length and len(value) != len(args)):",
            "if not isinstance(value, list):",
        ),
        (
            ("if spec.name not in tree and spec.default is spec.default_factory is MISSING:"),
            "if False and spec.default is spec.default_factory is MISSING:",
        ),
    ),
]
