"""Exchange SAEs and facts with other tools: the Hugging Face hub, Neuronpedia, SAEBench and dictionary_learning."""
