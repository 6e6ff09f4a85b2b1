"""labels/ and samples/ -> scores/<baseline>/: python jobs/baselines.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Make the baselines of `baselines.names`, each of which scores every labelled query as a router does.

    margin_sampling reads the weak model's samples; knn and routellm_mf learn from labels on embeddings/; those of Hybrid LLM train
    a router each on BARTScore qualities of the samples. A killed job goes on where it stopped. --limit: rows of each split.
    """
    # Without `writes` it claims all of ROOT: embeddings, routers, scores and folders of its own.
    with job("baselines", config, root, set_, needs_ray=True) as context:
        from firewall_ray.baselines.run import run_baselines  # seconds to import

        for result in run_baselines(context.config, context.store, limit=limit, force=force):
            context.report(result)


if __name__ == "__main__":
    run(main)
