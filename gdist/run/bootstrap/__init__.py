"""Scripts and manifests that bring a checkpoint to every host of a cluster, rendered from templates.

    BootstrapJob + what the scheduler needs  ->  text

The templates are in `gdist/clusters/templates`; `gdist.run.bootstrap.rendering` is the home of the library
that fills them in, and refuses what was not quoted.
"""
