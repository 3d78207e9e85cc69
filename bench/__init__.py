"""What is measured and decided: a room for each job, and the rooms that all jobs use."""

from reference.moved import moved_modules

moved_modules(
    __name__,
    {
        "compile_record": "compile.record",
        "cross_check": "check.search",
        "environment": "machine.environment",
        "expected_file": "check.expected_file",
        "figures": "waste.figures",
        "fuzzing": "fuzz",
        "memory": "workloads.need",
        "policy_spec": "waste.policies",
        "prefix_replay": "waste.prefix_replay",
        "record": "check.record",
        "simulate": "waste.simulate",
        "testing": "check.testing",
        "trial": "check.trial",
        "whatif": "waste.whatif",
    },
)
