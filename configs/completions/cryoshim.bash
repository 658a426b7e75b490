# SPDX-License-Identifier: Apache-2.0
_cryoshim() {
	local cur=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]}
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "doctor install uninstall run show completion help --help --version" -- "$cur")
		return
	fi
	case $verb in
	doctor) mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$cur") ;;
	install | uninstall) mapfile -t COMPREPLY < <(compgen -W "--prefix --dry-run --help" -- "$cur") ;;
	completion) mapfile -t COMPREPLY < <(compgen -W "bash zsh fish" -- "$cur") ;;
	run) mapfile -t COMPREPLY < <(compgen -c -- "$cur") ;;
	esac
}
complete -o default -F _cryoshim cryoshim
