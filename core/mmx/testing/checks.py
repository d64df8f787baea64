"""Which laws hold for which kind of component."""

from mmx.testing import encoders, models, parts, resuming, sources, storing
from mmx.testing.laws import Check

IN_A_MODEL: tuple[Check, ...] = (
    models.model_answers_whoever_is_absent,
    models.model_never_reads_what_is_absent,
    models.model_treats_rows_apart,
    models.model_trains_everywhere,
    models.model_evaluates_as_it_runs,
    models.model_is_a_function_of_seed_and_state,
    resuming.training_resumes_to_the_bit,
    storing.stored_weights_tell_the_whole_model,
)
CHECKS: dict[str, tuple[Check, ...]] = {
    "encoder": (
        encoders.encoder_gives_valid_finite_tokens,
        encoders.encoder_treats_rows_apart,
        encoders.encoder_takes_the_prompts_that_it_says,
        encoders.encoder_comes_in_stages,
        encoders.encoder_moves_under_lora,
        encoders.encoder_trains_everywhere,
        encoders.encoder_is_a_function_of_its_state,
    ),
    "strategy": (*IN_A_MODEL, models.strategy_hides_but_never_all),
    "fusion": IN_A_MODEL,
    "adapter": (
        parts.adapter_starts_at_the_pretrained_encoder,
        parts.adapter_trains_what_it_frees,
        parts.adapter_folds_into_plain_weights,
        parts.adapter_keeps_patterns_apart,
        resuming.training_resumes_to_the_bit,
        storing.stored_weights_tell_the_whole_model,
    ),
    "procedure": (
        parts.procedure_yields_steps_that_can_be_taken,
        parts.procedure_never_reads_what_is_absent,
        parts.procedure_trains_everywhere,
        parts.procedure_is_a_function_of_the_seed,
        resuming.training_resumes_to_the_bit,
        storing.stored_weights_tell_the_whole_model,
    ),
    "dataset": (
        sources.dataset_splits_share_no_sample,
        sources.dataset_samples_fit_their_description,
        sources.dataset_reads_the_same_twice,
    ),
    "protocol": (sources.protocol_keeps_its_word,),
    "tracker": (sources.tracker_remembers,),
}
