def pairs_section(runs):
    return ""
