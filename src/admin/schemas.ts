/** What the API takes and answers, by TypeBox: its types, its checks and the OpenAPI document all come from these. */
export * from './schemas/answers.js';
export * from './schemas/requests.js';
