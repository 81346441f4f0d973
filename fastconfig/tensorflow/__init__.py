"""PCGrad and PPCGrad for TensorFlow: ``pack_grad``, ``project_conflicting`` and ``pc_backward``.

    pcgrad = PPCGrad(reduction="mean")
    with tf.GradientTape(persistent=True) as tape:
        losses = [loss_1, loss_2]
    grads = pcgrad.pc_backward(tape, losses, model.trainable_variables)
    optimizer.apply_gradients(zip(grads, model.trainable_variables))

The projections follow from the Gram matrix of the gradients alone (docs/how.md), so that the gradients are
read twice, and nothing of their size is made for each task. All runs eagerly, in ``tf.function`` and in
``tf.function(jit_compile=True)``. In a replica of a ``tf.distribute`` strategy the replica's own gradients
are merged; the optimizer adds up the replicas' results, as it does with any gradient.
"""

from .surgery import PCGrad, PPCGrad

__all__ = ["PCGrad", "PPCGrad"]
