"""A small experiment, for the tests of whatever is made of one."""

EXPERIMENT = {
    "figure": "smoke",
    "title": "Two sizes from one another",
    "paper": "fig3",
    "report": "rows",
    "scales": {
        "tiny": {
            "about": "For a test.",
            "task": "kv_retrieval",
            "backbone": "llama-1x32",
            "limit": 8,
            "settings": {
                "task.key_length": 1,
                "task.value_length": 1,
                "task.alphabet": 8,
                "training.steps": 4,
                "training.evaluate_every": 2,
                "training.batch_size": 4,
                "training.validation_contexts": 8,
            },
            "runs": [
                {
                    "name": "GradMem K=1",
                    "method": "gradmem",
                    "settings": {"inner_steps": 1, "memory_vectors": 2},
                    "axes": {"task.pairs": [4, 2]},
                    "evaluate": {"evaluation_inner_steps": [None, 0]},
                    "start": [{"of": {"task.pairs": 4}, "at": {"task.pairs": 2}}],
                    "seconds": 60,
                },
                {"name": "no memory", "method": "no_memory", "axes": {"task.pairs": [4]}},
                {"name": "RMT ×1", "method": "rtm", "axes": {"task.pairs": [4]}},
            ],
        }
    },
}
