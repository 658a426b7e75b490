# SPDX-License-Identifier: Apache-2.0
complete -c cryoshim -n __fish_use_subcommand -f -a "doctor install uninstall run show completion help"
complete -c cryoshim -n "__fish_seen_subcommand_from doctor" -f -l json -d "print the findings as JSON"
complete -c cryoshim -n "__fish_seen_subcommand_from install uninstall" -l prefix -r -d "where to install"
complete -c cryoshim -n "__fish_seen_subcommand_from install uninstall" -l dry-run -d "only say what would be done"
complete -c cryoshim -n "__fish_seen_subcommand_from completion" -f -a "bash zsh fish"
