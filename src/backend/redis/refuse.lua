-- Audits a refused attempt to decide or extend. It uses its own stream, so that it evicts no decision.
-- Included in other scripts. The key is not declared: a decider without write permission for it can
-- still decide, and only the refused attempt fails.
local REFUSED, LONGEST = 'cs:refused:{cs}', 256

-- Truncates a long text at a character boundary.
local function clip(text)
  local cut = math.min(#text, LONGEST)
  while cut < #text and cut > 0 and math.floor(string.byte(text, cut + 1) / 64) == 2 do
    cut = cut - 1
  end
  return string.sub(text, 1, cut)
end

-- Returns `result`.
local function refuse(result, attempt, id, task, by, limit)
  redis.call('XADD', REFUSED, 'MAXLEN', '~', limit, '*', 'what', 'refused', 'attempt', attempt,
    'approval', clip(id), 'task', clip(task or ''), 'by', clip(by), 'why', result[1])
  return result
end
