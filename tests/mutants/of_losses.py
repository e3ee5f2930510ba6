"""The faults of `zephyr/losses.py`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/losses.py",
        ("tests/test_losses.py",),
        (
            "return (1 - label_smoothing) * kept_P + label_smoothing * flipped_P",
            "return (1 - label_smoothing) * kept_P + label_smoothing * kept_P",
        ),
        (
            "return (1 - label_smoothing) * kept_P + label_smoothing * flipped_P",
            "return (1 - label_smoothing) * kept_P - label_smoothing * flipped_P",
        ),
        (
            "return weighted_P / (1 - 2 * label_smoothing)",
            "return weighted_P / (1 - label_smoothing)",
        ),
        (
            "weighted_P = (1 - label_smoothing) * kept_P - label_smoothing * flipped_P",
            "weighted_P = (1 - label_smoothing) * kept_P + label_smoothing * flipped_P",
        ),
        (
            "return (chosen_P - rejected_P - 1 / (2 * beta)).square()",
            "return (chosen_P - rejected_P - 1 / beta).square()",
        ),
        (
            "return (chosen_P - rejected_P - 1 / (2 * beta)).square()",
            "return (chosen_P - rejected_P - 1 / (2 * beta)).abs()",
        ),
        (
            "return F.relu(1 - beta * (chosen_P - rejected_P))",
            "return F.relu(1 - (chosen_P - rejected_P))",
        ),
        (
            "F.logsigmoid(margin_P) - math.log1p(-label_smoothing)",
            "F.logsigmoid(margin_P) - math.log(label_smoothing)",
        ),
        (
            "return -F.logsigmoid(reward_chosen_P) - 0.5 * negatives_P",
            "return -F.logsigmoid(reward_chosen_P) - negatives_P",
        ),
        (
            ("return (chosen_P - 0.5 / beta).square() + (rejected_P + 0.5 / beta).square()"),
            ("return (chosen_P - 0.5 / beta).square() + (rejected_P - 0.5 / beta).square()"),
        ),
        (
            ("return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)"),
            ("return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(-beta * rejected_P)"),
        ),
        (
            (
                "return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P "
                "- rejected_P))"
            ),
            (
                "return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(-beta * "
                "(chosen_P - rejected_P))"
            ),
        ),
        ('"ipo": Loss(ipo, length_averaged=True),', '"ipo": Loss(ipo),'),
        (
            'sigmoid, smoothing="accepted", length_averaged=True, usual_beta=(1.0, 50.0)',
            'sigmoid, smoothing="accepted", usual_beta=(1.0, 50.0)',
        ),
        (
            '"exo_pair": Loss(exo_pair, smoothing="required"),',
            '"exo_pair": Loss(exo_pair, smoothing="accepted"),',
        ),
        (
            "DPOTerms(loss_P, reward_chosen_P.detach(), reward_rejected_P.detach())",
            "DPOTerms(loss_P, reward_chosen_P, reward_rejected_P.detach())",
        ),
        (
            "beta * chosen_ratio_P, beta * rejected_ratio_P\n    if entry.length_averaged",
            "chosen_ratio_P, beta * rejected_ratio_P\n    if entry.length_averaged",
        ),
        (
            "        if entry.reference_free:\n            reward",
            "        if True:\n            reward",
        ),
        (
            (
                "chosen_ratio_P = chosen_P - ref_chosen_P\n"
                "        rejected_ratio_P = rejected_P - ref_rejected_P"
            ),
            (
                "chosen_ratio_P = chosen_P - ref_rejected_P\n"
                "        rejected_ratio_P = rejected_P - ref_chosen_P"
            ),
        ),
        (
            '"rejected_tokens_P", rejected_tokens_P, chosen_P',
            '"rejected_tokens_P", chosen_tokens_P, chosen_P',
        ),
        (
            'settings["label_smoothing"] = label_smoothing',
            'settings["label_smoothing"] = 1e-3 if loss == "exo_pair" else 0.0',
        ),
        (
            ("return (margin_P > 4 * torch.finfo(logps.dtype).eps * logps.abs().sum(0)).float()"),
            "return (margin_P > 0 * logps.abs().sum(0)).float()",
        ),
        (
            "margin_P = (logps[0] - logps[2]) - (logps[1] - logps[3])",
            "margin_P = (logps[0] - logps[3]) - (logps[1] - logps[2])",
        ),
        ("if not 0 < beta < math.inf:", "if not 0 <= beta < math.inf:"),
        ("if not 0 <= label_smoothing < 0.5:", "if not 0 <= label_smoothing <= 0.5:"),
        (
            'if entry.smoothing == "refused" and label_smoothing > 0:',
            'if entry.smoothing == "refused" and label_smoothing > 0.3:',
        ),
        (
            ("if vector_P.dtype not in (torch.float32, torch.float64) or vector_P.ndim != 1:"),
            ("if vector_P.dtype not in (torch.float32, torch.float64) or vector_P.ndim > 2:"),
        ),
        ("if tokens_P.shape != like_P.shape:", "if tokens_P.ndim != like_P.ndim:"),
        ("lost_P = F.relu(-chosen_P)", "lost_P = F.relu(chosen_P)"),
        (
            "return -F.logsigmoid(beta * (chosen_P - rejected_P) - gamma)",
            "return -F.logsigmoid(beta * (chosen_P - rejected_P - gamma))",
        ),
        ("logp_P.clamp(max=-torch.finfo(logp_P.dtype).eps / 2)", "logp_P.clamp(max=0)"),
        (
            '"cpo": Loss(cpo, smoothing="accepted", reference_free=True, sft_weight=1.0),',
            '"cpo": Loss(cpo, smoothing="accepted", reference_free=True),',
        ),
        (
            "loss_P = loss_P - sft_weight * (chosen_P / tokens_P)",
            "loss_P = loss_P - sft_weight * chosen_P",
        ),
        (".detach().exp().clamp(max=1.0)", ".exp().clamp(max=1.0)"),
        ("        values[key] = float(value)\n", ""),
        ("        if key not in known:\n", "        if key not in known:\n            continue\n"),
        ("        if not low <= values[key] <= high\n", "        if not values[key] <= high\n"),
    ),
]
