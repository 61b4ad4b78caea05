"""How many replicas a load needs: figures of models and GPUs, formulas, and a simulation of the queues."""
