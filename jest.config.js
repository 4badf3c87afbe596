/**
 * Jest in ESM mode: TypeBox 1.x and this project are ESM only. Sources are compiled in memory by swc; the system tests
 * spawn the built program in dist/ instead.
 */
export default {
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  // These need PgBouncer, which no npm package brings: `npm run test:pooler`.
  // And these take minutes: `npm run test:all`.
  testPathIgnorePatterns: [
    '/node_modules/',
    '/test/pooler/',
    ...(process.env.LONG_TESTS === '1' ? [] : ['\\.long\\.']),
  ],
  extensionsToTreatAsEsm: ['.ts'],
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { target: 'es2023', parser: { syntax: 'typescript' } }, module: { type: 'es6' } },
    ],
  },
  globalSetup: '<rootDir>/test/support/global-setup.js',
  globalTeardown: '<rootDir>/test/support/global-teardown.js',
  collectCoverageFrom: ['src/**/*.ts'],
  coverageProvider: 'v8',
  testSequencer: '<rootDir>/test/support/sequencer.js',
  setupFilesAfterEnv: ['<rootDir>/test/support/turns.ts'],
  testTimeout: 20_000,
  // More than cores, since most tests wait most of the time.
  maxWorkers: 4,
};
