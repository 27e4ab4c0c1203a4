"""The plugin kit: ``rlkit plugins new`` writes a package, ``rlkit plugins check`` tries one."""
