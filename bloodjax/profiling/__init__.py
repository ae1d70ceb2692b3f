"""Profiles of training steps: time by part of the step and by operation, and FLOP/s utilisation.

Why the tables are our own and not XProf's (`hlo`, `trace` and `breakdown`, 490 lines): we tried
`xprof` 2.24.2 offline on the trace of a CPU run, through `xprof.convert.raw_to_tool_data`. Its
`hlo_stats` and `op_profile` were empty, and `framework_op_stats` had a single row, "IDLE": XProf
aggregates device planes only, and a CPU trace has none. Our tables assign 98 % of the same
step. On GPU and TPU, XProf has the time of each operation but not of each kind of layer, forward
and gradient, and the module documents no stable Python API. It also installs 37 packages that
bloodjax does not need (duckdb, grpcio, google-cloud-storage, cryptography, ...): 258 MB. The trace
in the workdir opens in XProf for those who have it.
"""
