#compdef nano3

_nano3_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _NANO3_COMPLETE=complete_zsh nano3)
}

compdef _nano3_completion nano3
